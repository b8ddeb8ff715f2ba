//! The plan of a run: how long each job may take, and the rounds in which contenders take turns.

use crate::contender::Kind;
use crate::jobs::{self, Entrant, Job, Mode, Part, Scene};
use crate::measure::{Figure, Limits};
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// One figure, and whose it is.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) contender: &'static str,
    /// `None` for a limit.
    pub(crate) kind: Option<Kind>,
    pub(crate) round: usize,
    pub(crate) figure: Figure,
}

/// What a run measured, and what it could not.
#[derive(Default)]
pub(crate) struct Results {
    pub(crate) samples: Vec<Sample>,
    /// Job, contender, why.
    pub(crate) left_out: Vec<(&'static str, &'static str, String)>,
    pub(crate) cut_short: Vec<String>,
    pub(crate) failures: Vec<String>,
}

pub(crate) struct Plan {
    pub(crate) mode: Mode,
    jobs: Vec<Job>,
    rounds: usize,
    limits: Limits,
    budget: Duration,
}

/// What runs now, for the case that it never ends.
static CURRENT: Mutex<String> = Mutex::new(String::new());
static FAILURES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Ends the process if it still runs a minute after its time: a call of a crate hangs.
fn watch(over_at: Instant) {
    std::thread::spawn(move || {
        let end = over_at + Duration::from_secs(60);
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        eprintln!("{} does not end", CURRENT.lock().unwrap());
        std::process::exit(1);
    });
}

/// Tells what could not be done, now and in the table.
pub(crate) fn note_failure(what: String) {
    println!("{what}");
    FAILURES.lock().unwrap().push(what);
}

/// Runs what a crate may fail at, and notes that it did.
pub(crate) fn shielded<T>(name: &str, run: impl FnOnce() -> T) -> Option<T> {
    let result = std::panic::catch_unwind(AssertUnwindSafe(run));
    result
        .map_err(|cause| {
            let text = cause.downcast_ref::<String>().map(String::as_str);
            let text = text.or(cause.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            let text = text.lines().next().unwrap_or_default();
            note_failure(format!("{name} fails: {text}"));
        })
        .ok()
}

impl Plan {
    /// All jobs, or those that are named, as long as the mode allows.
    pub(crate) fn new(mode: Mode, only: &[String], kinds: &[Kind]) -> Self {
        let mut jobs = jobs::all(mode, kinds);
        jobs.retain(|job| only.is_empty() || only.iter().any(|named| named == job.id));
        let mut plan = Self {
            mode,
            jobs,
            rounds: mode.pick(3, 5),
            limits: Limits {
                time: Duration::from_millis(mode.pick(100, 1000)),
                bytes: mode.pick(128, 512) << 20,
            },
            budget: Duration::from_secs(mode.pick(180, 25 * 60)),
        };
        // Machines differ; a part of the time is left for what takes longer here.
        while plan.seconds() > plan.budget.as_secs_f64() * 0.85 {
            if plan.rounds > 3 {
                plan.rounds -= 1;
            } else if plan.limits.time > Duration::from_millis(30) {
                plan.limits.time = plan.limits.time * 9 / 10;
            } else if plan.rounds > 1 {
                plan.rounds -= 1;
            } else {
                break;
            }
        }
        plan
    }

    fn seconds(&self) -> f64 {
        self.jobs.iter().map(|job| job.seconds(self.limits.time, self.rounds)).sum()
    }

    pub(crate) fn print(&self) {
        println!(
            "{}: up to {} rounds of {} ms or {} MiB for each measurement; about {:.0} s in all, \
             at most {} s",
            self.mode.name(),
            self.rounds,
            self.limits.time.as_millis(),
            self.limits.bytes >> 20,
            self.seconds(),
            self.budget.as_secs()
        );
        for job in &self.jobs {
            let seconds = job.seconds(self.limits.time, self.rounds);
            println!("  {:4} {:50} {seconds:6.1} s", job.id, job.title);
            for (name, why) in &job.left_out {
                println!("       without {name}: {why}");
            }
        }
    }

    /// Runs the jobs, writes each figure to `lines` at once, and shows all so far after each job.
    pub(crate) fn run(&self, lines: &mut dyn Write, show: &mut dyn FnMut(&Results)) {
        let mut results = Results::default();
        let over_at = Instant::now() + self.budget;
        watch(over_at);
        for job in &self.jobs {
            let left_out = job.left_out.iter().map(|(name, why)| (job.id, *name, why.clone()));
            results.left_out.extend(left_out);
            let start = Instant::now();
            // A job may take twice what it is expected to, and not more than is left.
            let most = job.seconds(self.limits.time, self.rounds) * 2.0 + 2.0;
            let until = over_at.min(start + Duration::from_secs_f64(most));
            print!("{} {} ", job.id, job.title);
            for part in &job.parts {
                self.run_part(job, part, until, lines, &mut results);
            }
            println!(" {:.1} s", start.elapsed().as_secs_f64());
            results.failures.append(&mut FAILURES.lock().unwrap());
            results.failures.dedup();
            show(&results);
        }
    }

    fn run_part(
        &self,
        job: &Job,
        part: &Part,
        until: Instant,
        lines: &mut dyn Write,
        results: &mut Results,
    ) {
        match part {
            Part::InTurn(entrants) => {
                for round in 0..self.rounds.min(job.rounds) {
                    for turn in 0..entrants.len() {
                        if Instant::now() >= until {
                            let done = format!("{} after {round} rounds and {turn} turns", job.id);
                            println!("\n{done}: its time is over");
                            results.cut_short.push(done);
                            return;
                        }
                        // The order is another one in each round.
                        let at = (turn + round * entrants.len() / 3) % entrants.len();
                        for sample in self.turn(job, &entrants[at], round) {
                            keep(sample, lines, results);
                        }
                    }
                    tick();
                }
            }
            Part::Together(kinds, run) => {
                let figures = self.in_scene(job.id, |scene| run(scene, kinds));
                for (contender, figure) in figures.unwrap_or_default() {
                    let kind = kinds.iter().find(|kind| kind.name == contender).copied();
                    keep(Sample { contender, kind, round: 0, figure }, lines, results);
                }
                tick();
            }
        }
    }

    fn turn(&self, job: &Job, entrant: &Entrant, round: usize) -> Vec<Sample> {
        let name = format!("{} {}", job.id, entrant.name);
        let figures = self.in_scene(&name, |scene| (entrant.run)(scene));
        let sample = |figure| {
            let (contender, kind) = (entrant.name, entrant.kind);
            Sample { contender, kind, round, figure }
        };
        figures.unwrap_or_default().into_iter().map(sample).collect()
    }

    fn in_scene<T>(&self, name: &str, run: impl FnOnce(&Scene<'_>) -> T) -> Option<T> {
        let directory = directory();
        let limits = self.limits;
        name.clone_into(&mut CURRENT.lock().unwrap());
        shielded(name, || run(&Scene { directory: directory.path(), limits }))
    }
}

fn keep(sample: Sample, lines: &mut dyn Write, results: &mut Results) {
    writeln!(lines, "{}", crate::report::json(&sample)).unwrap();
    results.samples.push(sample);
}

fn tick() {
    print!(".");
    std::io::stdout().flush().ok();
}

/// A directory that is removed at the end, on the disk that `KEEPQ_BENCH_DIR` chooses.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(place()).unwrap()
}

pub(crate) fn place() -> std::path::PathBuf {
    std::env::var_os("KEEPQ_BENCH_DIR")
        .map_or_else(std::env::temp_dir, |path| Path::new(&path).to_path_buf())
}
