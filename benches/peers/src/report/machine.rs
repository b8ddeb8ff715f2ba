//! The machine on which a run took place.

use std::path::Path;
use std::process::Command;

/// Lines of text: processor, memory, kernel, file system, disk, compiler.
pub(crate) fn describe(directory: &Path) -> Vec<String> {
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo");
    let kib = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    let gib = kib.unwrap_or(0.0) / f64::from(1 << 20);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("?");
    let commit = output("git", &["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short", "HEAD"]);
    vec![
        format!("processor: {}, {cores} cores, {gib:.0} GiB", model.unwrap_or("unknown")),
        format!("kernel: Linux {}; load after the run: {load}", kernel.trim()),
        format!("disk: {}", disk(directory)),
        format!("compiler: {}", output("rustc", &["--version"])),
        format!("keepq: commit {commit}"),
    ]
}

/// The file system that a directory lies on, and its device.
fn disk(directory: &Path) -> String {
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_path_buf());
    let mounts = read("/proc/self/mounts");
    let mut best = ("", "unknown", "unknown");
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(at), Some(kind)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if directory.starts_with(at) && at.len() >= best.0.len() {
            best = (at, device, kind);
        }
    }
    let (at, device, kind) = best;
    let name = device.rsplit('/').next().unwrap_or_default();
    let disk = name.trim_end_matches(|digit: char| digit.is_ascii_digit());
    let model = read(&format!("/sys/block/{disk}/device/model"));
    let spins = match read(&format!("/sys/block/{disk}/queue/rotational")).trim() {
        "0" => ", not rotational",
        "1" => ", rotational",
        _ => "",
    };
    let cache = read(&format!("/sys/block/{disk}/queue/write_cache"));
    let cache = if cache.is_empty() { String::new() } else { format!(", {}", cache.trim()) };
    format!("{kind} on {device} {}(mounted at {at}{spins}{cache})", spaced(model.trim()))
}

fn spaced(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{text} ") }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or("unknown".into(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_string()
    })
}
