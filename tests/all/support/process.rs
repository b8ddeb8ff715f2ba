//! Processes: this program once more, and what a process has open.

#[cfg(target_os = "linux")]
use std::path::Path;
use std::process::{Command, ExitStatus};

/// This program once more, for one test of it, by its whole name: `kill::child`.
pub(crate) fn again(test: &str) -> Command {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    program
}

/// Whether `Child::kill` ended the process: on Unix that is a signal, and no code; on Windows it is
/// code 1, which no test that fails has, but a program whose `main` returns an error.
pub(crate) fn was_killed(status: ExitStatus) -> bool {
    if cfg!(windows) { status.code() == Some(1) } else { status.code().is_none() }
}

/// Whether the test that calls this, which is named `test`, has a process to itself; if it has not,
/// it is run in one, here and now, and has nothing left to do.
#[cfg(target_os = "linux")]
pub(crate) fn is_alone(test: &str) -> bool {
    const TEST: &str = "KEEPQ_TEST_ALONE";
    if std::env::var(TEST).is_ok_and(|alone| alone == test) {
        return true;
    }
    let output = again(test).env(TEST, test).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let has_passed = output.status.success() && said.contains("1 passed");
    assert!(has_passed, "{test}, alone: {}: {said}{errors}", output.status);
    false
}

/// How many descriptors of this process are of files below `directory`.
#[cfg(target_os = "linux")]
pub(crate) fn descriptors(directory: &Path) -> usize {
    let directory = directory.canonicalize().unwrap();
    let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    // Those of other tests may be closed by now.
    all.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|file| file.starts_with(&directory)))
        .count()
}

/// How many maps this process has of files below `directory`.
#[cfg(target_os = "linux")]
pub(crate) fn maps(directory: &Path) -> usize {
    let directory = directory.canonicalize().unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(directory.to_str().unwrap())).count()
}
