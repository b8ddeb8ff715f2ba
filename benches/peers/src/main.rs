//! Measures keepq beside other crates that can serve as a queue on a disk: see README.md.

mod check;
mod child;
mod contender;
mod jobs;
mod limit;
mod mapped;
mod measure;
mod peer;
mod plan;
mod report;

use contender::Kind;
use jobs::Mode;
use plan::Plan;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "quick|full|check [--only P1,P7] [--out DIR] [--peers keepq,redb]";

/// What the command line asks for.
struct Asked {
    command: String,
    only: Vec<String>,
    peers: Vec<String>,
    out: PathBuf,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if std::env::var_os(child::VARIABLE).is_some() {
        run_child(&arguments);
        return ExitCode::SUCCESS;
    }
    let Some(asked) = asked(arguments) else {
        eprintln!("usage: {USAGE}");
        return ExitCode::FAILURE;
    };
    let kinds = chosen(&asked.peers);
    if kinds.is_empty() {
        eprintln!("no peer has such a name; there are:");
        for kind in peer::all() {
            eprintln!("  {} ({})", kind.package, kind.name);
        }
        return ExitCode::FAILURE;
    }
    std::fs::create_dir_all(&asked.out).unwrap();
    match asked.command.as_str() {
        "quick" => measure(Mode::Quick, &asked, &kinds),
        "full" => measure(Mode::Full, &asked, &kinds),
        _ => check::run(&kinds, &asked.out),
    }
}

fn asked(arguments: Vec<String>) -> Option<Asked> {
    let mut arguments = arguments.into_iter();
    let command = arguments.next()?;
    if !["quick", "full", "check"].contains(&command.as_str()) {
        return None;
    }
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers");
    let mut asked = Asked { command, only: Vec::new(), peers: Vec::new(), out };
    while let Some(option) = arguments.next() {
        let value = arguments.next()?;
        let list = || -> Vec<String> {
            // The name of a configuration may have a comma in it.
            let is_name = peer::all().iter().any(|kind| kind.name == value);
            let parts = value.split(if is_name { '\0' } else { ',' });
            parts.map(|part| part.trim().to_string()).collect()
        };
        match option.as_str() {
            "--only" => asked.only = list(),
            "--peers" => asked.peers = list(),
            "--out" => asked.out = PathBuf::from(value),
            _ => return None,
        }
    }
    Some(asked)
}

/// The kinds whose package or name is listed; all if none is.
fn chosen(peers: &[String]) -> Vec<Kind> {
    let mut kinds = peer::all();
    kinds.retain(|kind| {
        peers.is_empty() || peers.iter().any(|name| name == kind.package || name == kind.name)
    });
    kinds
}

fn measure(mode: Mode, asked: &Asked, kinds: &[Kind]) -> ExitCode {
    let plan = Plan::new(mode, &asked.only, kinds);
    plan.print();
    let mut lines = std::fs::File::create(asked.out.join("results.jsonl")).unwrap();
    plan.run(&mut lines, &mut |results| {
        report::write(&asked.out, results, kinds, plan.mode.name());
    });
    println!("table, figures and plots: {}", asked.out.display());
    ExitCode::SUCCESS
}

/// A task of this program's own: the name of the task, of the kind, the directory, a number.
fn run_child(arguments: &[String]) {
    let [task, name, path, rest @ ..] = arguments else { panic!("a task has three words") };
    let kinds = peer::all();
    let kind = kinds.iter().find(|kind| kind.name == *name).expect("the parent knows the names");
    let path = Path::new(path);
    let number = rest.first().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
    match task.as_str() {
        "fill" => jobs::fill_child(kind, path, number),
        "open" => jobs::open_child(kind, path),
        "idle" => jobs::idle_child(kind, path, number as usize),
        task => check::run_child(task, kind, path, number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_of_one_kind_and_packages_have_a_version() {
        let kinds = peer::all();
        for kind in &kinds {
            let alike = kinds.iter().filter(|other| other.name == kind.name);
            assert_eq!(alike.count(), 1, "{}", kind.name);
            assert_ne!(peer::version(kind.package), "?", "{}", kind.package);
            // They go into JSON and into a table as they are.
            assert!(!kind.name.contains(['"', '|', '\\']), "{}", kind.name);
            assert!(!kind.remarks.contains('|'), "{}", kind.remarks);
        }
    }

    #[test]
    fn peers_are_chosen_by_package_or_by_name() {
        let names = |peers: &[&str]| {
            let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
            chosen(&peers).iter().map(|kind| kind.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&["keepq"]), ["keepq Os", "keepq Always"]);
        assert_eq!(names(&["SQLite, FULL"]), ["SQLite, FULL"]);
        assert_eq!(names(&["nothing"]), [""; 0]);
    }

    #[test]
    fn a_name_with_a_comma_is_one_name() {
        let asked = |value: &str| asked(["quick", "--peers", value].map(String::from).to_vec());
        assert_eq!(asked("SQLite, FULL").unwrap().peers, ["SQLite, FULL"]);
        assert_eq!(asked("redb, keepq").unwrap().peers, ["redb", "keepq"]);
    }

    #[test]
    fn no_job_takes_most_of_the_time() {
        for mode in [Mode::Quick, Mode::Full] {
            for job in jobs::all(mode, &peer::all()) {
                assert!(job.seconds(std::time::Duration::from_secs(1), 3) < 400.0, "{}", job.id);
            }
        }
    }
}
