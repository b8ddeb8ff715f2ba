//! Ships a log file, line by line, through a queue, to a copy of it.
//!
//! `cargo run --release --example ship_log [FILE OUT]`
//!
//! A reader puts the lines of FILE into a queue; two workers take them out and append them to OUT,
//! in order. Kill it at any moment and start it again: OUT ends up byte-identical to FILE. The
//! program keeps no notes of its own for that: OUT's length says how far it got, the queue holds
//! the lines that were read and not yet delivered, and a line that comes twice is recognised by its
//! offset.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    reason = "an example talks to people"
)]

use keepq::{Delivery, Queue};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A longer line travels in pieces.
const MAX_LINE: u64 = 1 << 20;
/// A batch, which is pushed with one sync, ends at this number of lines or of bytes.
const BATCH_LINES: usize = 2000;
const BATCH_BYTES: u64 = 4 << 20;
/// The reader waits while more lines than this are on their way.
const MAX_BACKLOG: u64 = 200_000;
const WORKERS: usize = 2;

fn main() -> Result<()> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match &args[..] {
        [file, out] => ship(file, out),
        [] => demo(),
        _ => Err("usage: ship_log [FILE OUT]".into()),
    }
}

/// Ships a log that most Linux machines have, or else one made for the purpose.
fn demo() -> Result<()> {
    let dir = Path::new("target/ship_log");
    fs::create_dir_all(dir)?;
    let logs = ["syslog", "messages", "kern.log", "dpkg.log", "dnf.log", "pacman.log"];
    let logs = logs.map(|name| Path::new("/var/log").join(name));
    let readable = logs.into_iter().filter(|path| File::open(path).is_ok());
    let file = match readable.max_by_key(|path| path.metadata().map_or(0, |m| m.len())) {
        Some(path) => path,
        None => make_log(&dir.join("made.log"))?,
    };
    let out = dir.join("out.log");
    if fs::metadata(&out).is_ok_and(|copy| copy.len() == file.metadata().map_or(0, |m| m.len())) {
        println!("{} is complete from an earlier run; starting anew", out.display());
        fs::remove_file(&out)?;
    }
    ship(&file, &out)
}

fn make_log(path: &Path) -> Result<PathBuf> {
    if !path.exists() {
        println!("no log under /var/log is readable; making {}", path.display());
        let mut lines = Vec::new();
        for n in 0..500_000u64 {
            let id = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            writeln!(lines, "{n:08} INFO request {id:016x} took {} us", id % 9973)?;
        }
        let half_made = path.with_extension("tmp");
        fs::write(&half_made, lines)?;
        fs::rename(half_made, path)?;
    }
    Ok(path.to_path_buf())
}

/// The copy, and whose turn it is to append to it.
struct Out {
    file: File,
    len: u64,
}

struct Shared<'a> {
    queue: &'a Queue,
    out: Mutex<Out>,
    /// The same file, to be synced while others append.
    synced: File,
    turn: Condvar,
    total: u64,
    delivered_lines: AtomicU64,
    is_over: AtomicBool,
}

fn ship(file: &Path, out: &Path) -> Result<()> {
    let source = File::open(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let total = source.metadata()?.len();
    println!("{} ({total} bytes) -> {}", file.display(), out.display());
    let copy = OpenOptions::new().create(true).read(true).append(true).open(out)?;
    let len = copy.metadata()?.len();
    check_prefix(&source, &copy, len, out)?;
    let mut queue_name = out.file_name().unwrap_or_default().to_os_string();
    queue_name.push(".queue");
    // No line is given up, however often this program was killed while it worked on it.
    let queue = Queue::options().max_attempts(0).open(out.with_file_name(queue_name))?;
    let shared = Shared {
        queue: &queue,
        synced: copy.try_clone()?,
        out: Mutex::new(Out { file: copy, len }),
        turn: Condvar::new(),
        total,
        delivered_lines: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
    };
    let start = Instant::now();
    shared.finish_last_run()?;
    {
        // The lines that the last run had read may come from a log that is no longer there.
        let out_now = shared.out.lock().unwrap();
        check_prefix(&source, &out_now.file, out_now.len, out)?;
    }
    let mut results = Vec::new();
    std::thread::scope(|scope| {
        let shared = &shared;
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| scope.spawn(|| shared.work().inspect_err(|_| shared.end())))
            .collect();
        scope.spawn(|| shared.show_progress(start));
        results.push(shared.read(source).inspect_err(|_| shared.end()));
        results.extend(workers.into_iter().map(|worker| worker.join().expect("no panic")));
        shared.is_over.store(true, Relaxed);
    });
    results.into_iter().collect::<Result<()>>()?;
    let lines = shared.delivered_lines.load(Relaxed);
    let seconds = start.elapsed().as_secs_f64();
    shared.out.lock().unwrap().file.sync_all()?;
    queue.close()?;
    println!("done: {lines} lines in {seconds:.2} s, {:.0} lines/s", lines as f64 / seconds);
    Ok(())
}

/// Refuses to append to something that is not the beginning of FILE.
fn check_prefix(mut source: &File, mut copy: &File, len: u64, out: &Path) -> Result<()> {
    let start = len.saturating_sub(1 << 16);
    let mut ends = [Vec::new(), Vec::new()];
    source.seek(SeekFrom::Start(start))?;
    source.take(len - start).read_to_end(&mut ends[0])?;
    copy.seek(SeekFrom::Start(start))?;
    copy.take(len - start).read_to_end(&mut ends[1])?;
    if ends[0] != ends[1] {
        return Err(format!("{} is not the beginning of the log", out.display()).into());
    }
    Ok(())
}

impl Shared<'_> {
    /// Delivers the lines that the last run read and did not deliver. Then OUT's length says where
    /// to read on.
    fn finish_last_run(&self) -> Result<()> {
        loop {
            let lines = self.queue.pop_batch(BATCH_LINES)?;
            if lines.is_empty() {
                return Ok(());
            }
            let mut out = self.out.lock().unwrap();
            for line in &lines {
                // A line that starts behind the end is read again in its turn: OUT lost the lines
                // before it in a power cut.
                if offset(line) <= out.len {
                    Self::append(&mut out, offset(line), &line[8..])?;
                }
            }
            drop(out);
            self.synced.sync_data()?;
            self.queue.ack_batch(lines)?;
        }
    }

    /// Puts the rest of FILE into the queue.
    fn read(&self, mut source: File) -> Result<()> {
        let mut offset = self.out.lock().unwrap().len;
        source.seek(SeekFrom::Start(offset))?;
        let mut source = BufReader::with_capacity(1 << 20, source).take(self.total - offset);
        while offset < self.total && !self.is_over.load(Relaxed) {
            let mut batch = Vec::new();
            let start = offset;
            while batch.len() < BATCH_LINES && offset - start < BATCH_BYTES {
                let mut message = offset.to_le_bytes().to_vec();
                let read = source.by_ref().take(MAX_LINE).read_until(b'\n', &mut message)?;
                if read == 0 {
                    break;
                }
                offset += read as u64;
                batch.push(message);
            }
            if batch.is_empty() {
                return Err("the log became shorter while it was read".into());
            }
            self.queue.push_batch(&batch)?;
            while self.queue.len() > MAX_BACKLOG && !self.is_over.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// Ends the work of all, also of workers that wait for a turn that will not come.
    fn end(&self) {
        let _out = self.out.lock().unwrap();
        self.is_over.store(true, Relaxed);
        self.turn.notify_all();
    }

    /// Takes lines, and appends them to OUT when it is their turn, until all of FILE is there.
    fn work(&self) -> Result<()> {
        while !self.is_over.load(Relaxed) && self.out.lock().unwrap().len < self.total {
            // A timeout, because the last line may be with the other worker.
            let Some(first) = self.queue.pop_timeout(Duration::from_millis(20))? else { continue };
            let mut lines = vec![first];
            lines.extend(self.queue.pop_batch(BATCH_LINES)?);
            lines.sort_by_key(Delivery::seq);
            self.deliver(&lines)?;
            // A line that is acked is gone from the queue: it must be on the disk here.
            self.synced.sync_data()?;
            self.queue.ack_batch(lines)?;
        }
        Ok(())
    }

    fn deliver(&self, lines: &[Delivery]) -> io::Result<()> {
        for run in lines.chunk_by(|a, b| offset(b) == offset(a) + a.len() as u64 - 8) {
            let bytes: Vec<u8> = run.iter().flat_map(|line| &line[8..]).copied().collect();
            let start = offset(&run[0]);
            let out = self.out.lock().unwrap();
            let not_yet = |out: &mut Out| out.len < start && !self.is_over.load(Relaxed);
            let mut out = self.turn.wait_while(out, not_yet).unwrap();
            if out.len < start {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "stopped before its turn"));
            }
            Self::append(&mut out, start, &bytes)?;
            self.turn.notify_all();
            self.delivered_lines.fetch_add(run.len() as u64, Relaxed);
        }
        Ok(())
    }

    /// Appends those of the bytes at `offset` of FILE that OUT does not have yet.
    fn append(out: &mut Out, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let known = usize::try_from(out.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        if let Some(new) = bytes.get(known..).filter(|_| offset <= out.len) {
            out.file.write_all(new)?;
            out.len += new.len() as u64;
        }
        Ok(())
    }

    fn show_progress(&self, start: Instant) {
        let first = self.out.lock().unwrap().len;
        let mut shown = Instant::now();
        while !self.is_over.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
            if shown.elapsed() < Duration::from_secs(1) {
                continue;
            }
            shown = Instant::now();
            let len = self.out.lock().unwrap().len;
            let seconds = start.elapsed().as_secs_f64();
            let rate = self.delivered_lines.load(Relaxed) as f64 / seconds;
            let left = (self.total - len) as f64 / ((len - first).max(1) as f64 / seconds);
            println!(
                "{:3} %  {rate:.0} lines/s  backlog {} lines  {left:.0} s left",
                len * 100 / self.total.max(1),
                self.queue.len(),
            );
        }
    }
}

/// Where in FILE a line starts: the first eight bytes of its message.
fn offset(line: &Delivery) -> u64 {
    line.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
