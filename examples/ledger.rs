//! Money moves between accounts. Kill it at any moment, cut the power, run it again: every transfer
//! that a teller was told is accepted is applied, once, and no cent appears or disappears.
//!
//! `cargo run --release --example ledger [DIRECTORY [TRANSFERS]]`
//!
//! How, in three parts that are worth copying:
//!
//! 1. A teller's `push` returns when the transfer is on the disk (`Durability::Always`).
//! 2. The bookkeeper appends transfers to a journal under their `Seq`, syncs it, and acks after
//!    that. A crash in between delivers them again; what the journal has is skipped.
//! 3. `sync_acks`: once an ack returns, not even a power cut brings the transfer back.
//!
//! There is one bookkeeper and it gives nothing back, so transfers reach it in the order of their
//! `Seq`, and "is it in the journal?" is one comparison with the last line.

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

use keepq::{Durability, Queue, TypedDelivery, TypedQueue};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, UNIX_EPOCH};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ACCOUNTS: u64 = 50;
const OPENING_BALANCE: u64 = 1000;
const TELLERS: u64 = 8;
const BATCH: usize = 256;

#[derive(Serialize, Deserialize, Clone)]
struct Transfer {
    from: u64,
    to: u64,
    cents: u64,
}

/// What was applied: lines of Seq, from, to, cents. The balances follow from it.
struct Journal {
    file: File,
    seqs: BTreeSet<u64>,
    last: u64,
    balances: Vec<u64>,
    refused: u64,
}

impl Journal {
    fn open(path: &Path) -> Result<Self> {
        let mut text = fs::read_to_string(path).unwrap_or_default();
        // A crash may have left half a line. Its transfer was not acked and comes again.
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        file.set_len(text.len() as u64)?;
        file.sync_all()?;
        let file = OpenOptions::new().append(true).open(path)?;
        let balances = vec![OPENING_BALANCE; ACCOUNTS as usize];
        let mut journal = Self { file, seqs: BTreeSet::new(), last: 0, balances, refused: 0 };
        for line in text.lines() {
            let numbers =
                line.split(' ').map(str::parse).collect::<std::result::Result<Vec<_>, _>>();
            let [seq, from, to, cents] = numbers?[..] else {
                return Err(format!("{}: {line:?} is no transfer", path.display()).into());
            };
            if seq <= journal.last {
                return Err(format!("transfer {seq} is in the journal twice").into());
            }
            journal.post(seq, &Transfer { from, to, cents })?;
        }
        Ok(journal)
    }

    /// Moves the money in memory.
    fn post(&mut self, seq: u64, transfer: &Transfer) -> Result<()> {
        let Transfer { from, to, cents } = *transfer;
        let account = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let left = self.balances.get(account(from)).and_then(|balance| balance.checked_sub(cents));
        match (left, self.balances.get(account(to))) {
            (Some(left), Some(_)) => {
                self.balances[account(from)] = left;
                self.balances[account(to)] += cents;
            }
            _ => return Err(format!("transfer {seq} is impossible").into()),
        }
        self.refused += u64::from(cents == 0);
        self.seqs.insert(seq);
        self.last = seq;
        Ok(())
    }

    /// Applies what is not in the journal yet. When it returns, all of it is, durably.
    fn apply(&mut self, jobs: &[TypedDelivery<Transfer>]) -> Result<u64> {
        let mut lines = Vec::new();
        let mut applied = 0;
        for job in jobs {
            let seq = u64::from(job.seq());
            if seq <= self.last {
                continue;
            }
            let Transfer { from, to, cents } = **job;
            let covered = self.balances.get(from as usize).is_some_and(|&balance| balance >= cents);
            // A transfer that is not covered is noted as one of nothing: that settles it, too.
            let cents = if covered { cents } else { 0 };
            writeln!(lines, "{seq} {from} {to} {cents}")?;
            self.post(seq, &Transfer { from, to, cents })?;
            applied += 1;
        }
        self.file.write_all(&lines)?;
        self.file.sync_data()?;
        Ok(applied)
    }

    /// No cent has appeared or disappeared.
    fn check_sum(&self) -> Result<()> {
        let sum: u64 = self.balances.iter().sum();
        println!("{ACCOUNTS} accounts, {sum} cents in all");
        if sum == ACCOUNTS * OPENING_BALANCE {
            Ok(())
        } else {
            Err("money is not conserved".into())
        }
    }

    /// Every transfer that a teller said was accepted is in the journal.
    fn check_receipts(&self, path: &Path) -> Result<()> {
        let text = fs::read_to_string(path)?;
        let complete = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let receipts = complete.map(str::parse).collect::<std::result::Result<Vec<u64>, _>>()?;
        println!("{} receipts, {} transfers in the journal", receipts.len(), self.seqs.len());
        match receipts.iter().find(|seq| !self.seqs.contains(seq)) {
            Some(seq) => Err(format!("transfer {seq} was accepted and is lost").into()),
            None => Ok(()),
        }
    }
}

/// Applies transfers until the last one that was accepted is.
fn keep_books(
    transfers: &TypedQueue<Transfer>,
    journal: &mut Journal,
    last_accepted: &AtomicU64,
) -> Result<u64> {
    let mut applied = 0;
    while journal.last < last_accepted.load(Relaxed) || !transfers.queue().is_empty() {
        let Some(first) = transfers.pop_timeout(Duration::from_millis(50))? else { continue };
        let mut jobs = vec![first];
        jobs.extend(transfers.pop_batch(BATCH)?);
        applied += journal.apply(&jobs)?;
        transfers.ack_batch(jobs)?;
    }
    Ok(applied)
}

/// Pushes transfers one by one; each is safe when `push` returns, and the customer gets a receipt.
/// Gives the last one's Seq.
fn tell(
    transfers: &TypedQueue<Transfer>,
    mut receipts: &File,
    teller: u64,
    count: u64,
) -> Result<u64> {
    let mut random = u64::from(UNIX_EPOCH.elapsed()?.subsec_nanos()) ^ teller << 32;
    let mut below = |end: u64| {
        // A linear congruential generator with MMIX's constants (Knuth, TAOCP volume 2, 3.3.4).
        random = random.wrapping_mul(6_364_136_223_846_793_005);
        random = random.wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % end
    };
    let mut last = 0;
    for _ in 0..count {
        let from = below(ACCOUNTS);
        let to = (from + 1 + below(ACCOUNTS - 1)) % ACCOUNTS;
        last = transfers.push(&Transfer { from, to, cents: 1 + below(300) })?.into();
        receipts.write_all(format!("{last}\n").as_bytes())?;
    }
    Ok(last)
}

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let dir = args.next().map_or_else(|| PathBuf::from("target/ledger"), PathBuf::from);
    let count: u64 = args.next().map_or(Ok(4000), |arg| arg.to_string_lossy().parse())?;
    fs::create_dir_all(&dir)?;
    let (journal_path, receipts_path) = (dir.join("journal"), dir.join("receipts"));
    let mut journal = Journal::open(&journal_path)?;
    let receipts = OpenOptions::new().create(true).append(true).open(&receipts_path)?;
    println!("the journal ends with transfer {}", journal.last);
    journal.check_sum()?;
    let options = Queue::options().durability(Durability::Always).sync_acks(true);
    let transfers = options.open(dir.join("transfers"))?.typed::<Transfer>();
    println!("{} accepted transfers are not applied yet", transfers.queue().len());
    let start = Instant::now();
    let last_accepted = AtomicU64::new(u64::MAX);
    let applied = std::thread::scope(|scope| {
        let books = scope.spawn(|| keep_books(&transfers, &mut journal, &last_accepted));
        let (transfers, receipts) = (&transfers, &receipts);
        let tell = |teller| move || tell(transfers, receipts, teller, count / TELLERS);
        let tellers: Vec<_> = (0..TELLERS).map(|teller| scope.spawn(tell(teller))).collect();
        let told = tellers.into_iter().map(|teller| teller.join().expect("no panic"));
        let told: Vec<Result<u64>> = told.collect();
        let newest = told.iter().flatten().copied().max().unwrap_or(0);
        last_accepted.store(newest, Relaxed);
        told.into_iter().collect::<Result<Vec<u64>>>()?;
        books.join().expect("no panic")
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let rate = applied as f64 / seconds;
    println!("{applied} transfers applied in {seconds:.2} s, {rate:.0} a second");
    println!("{} of all so far were not covered, and refused", journal.refused);
    transfers.close()?;
    let journal = Journal::open(&journal_path)?;
    journal.check_sum()?;
    journal.check_receipts(&receipts_path)
}
