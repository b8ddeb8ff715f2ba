//! Money moves between accounts. Kill it at any moment, cut the power, run it again: every transfer
//! that a teller was told is accepted is applied once, and no cent appears or disappears.
//!
//! `cargo run --release --example ledger [DIRECTORY [TRANSFERS]]`
//!
//! Three parts are worth copying:
//!
//! 1. A teller's `push` returns when the transfer is on the disk (`Durability::Always`), and the
//!    customer gets a receipt. A transfer whose teller was cut off before that may be applied as
//!    well: for customers who ask again, put a key of their own into the transfer.
//! 2. The bookkeeper appends transfers to a journal under their `Seq`, syncs it, and acks after
//!    that. A crash in between delivers them again; transfers in the journal are skipped.
//! 3. `sync_acks`: once an ack returns, not even a power cut brings the transfer back.
//!
//! There is one bookkeeper, and it gives no message back, so transfers reach it in the order of
//! their `Seq`, and "is it in the journal?" is one comparison with the last line.

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

mod common;

use common::Lines;
use keepq::{Durability, Queue, TypedDelivery, TypedQueue};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant, UNIX_EPOCH};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ACCOUNTS: usize = 50;
const OPENING_BALANCE: u64 = 1000;
const TELLERS: u64 = 8;
const BATCH: usize = 256;

#[derive(Serialize, Deserialize, Clone)]
struct Transfer {
    from: usize,
    to: usize,
    cents: u64,
}

/// The transfers that were applied, a line for each: Seq, from, to, cents, and the balances of the
/// two accounts after it.
struct Journal {
    lines: Lines,
    seqs: BTreeSet<u64>,
    balances: [u64; ACCOUNTS],
    refused: u64,
}

impl Journal {
    fn open(path: &Path) -> Result<Self> {
        let (mut seqs, mut balances) = (BTreeSet::new(), [OPENING_BALANCE; ACCOUNTS]);
        let (mut refused, mut wrong) = (0, None);
        let lines = Lines::open(path, |numbers| {
            let &[seq, from, to, cents, from_holds, to_holds] = numbers else {
                wrong = wrong.or(Some(0));
                return;
            };
            let is_next = seqs.last().is_none_or(|&last| last < seq);
            let transfer = Transfer { from: from as usize, to: to as usize, cents };
            let held = post(&mut balances, &transfer);
            if !is_next || held != Some((from_holds, to_holds)) {
                wrong = wrong.or(Some(seq));
            }
            seqs.insert(seq);
            refused += u64::from(cents == 0);
        })?;
        match wrong {
            Some(seq) => Err(format!("{}: wrong at transfer {seq}", path.display()).into()),
            None => Ok(Self { lines, seqs, balances, refused }),
        }
    }

    fn last(&self) -> u64 {
        self.seqs.last().copied().unwrap_or(0)
    }

    /// Applies the transfers that are not in the journal yet; returns how many there were. When
    /// this returns, all of them are in the journal, durably.
    fn apply(&mut self, jobs: &[TypedDelivery<Transfer>]) -> Result<u64> {
        let (mut balances, mut refused) = (self.balances, self.refused);
        let mut lines: Vec<[u64; 6]> = Vec::new();
        for job in jobs {
            let seq = u64::from(job.seq());
            if seq <= lines.last().map_or(self.last(), |line| line[0]) {
                continue;
            }
            let mut transfer = Transfer::clone(job);
            let mut holds = post(&mut balances, &transfer);
            if holds.is_none() {
                // Not covered, or between accounts that do not exist: it is noted as a transfer of
                // nothing between the first two. That settles it, too.
                transfer = Transfer { from: 0, to: 1, cents: 0 };
                refused += 1;
                holds = post(&mut balances, &transfer);
            }
            let (from_holds, to_holds) = holds.ok_or("nothing can always be moved")?;
            let [from, to] = [transfer.from as u64, transfer.to as u64];
            lines.push([seq, from, to, transfer.cents, from_holds, to_holds]);
        }
        self.lines.append_synced(&lines)?;
        // Only the journal counts: after an error everything else is as it was.
        self.seqs.extend(lines.iter().map(|line| line[0]));
        (self.balances, self.refused) = (balances, refused);
        Ok(lines.len() as u64)
    }

    /// No cent has appeared or disappeared.
    fn check_sum(&self) -> Result<()> {
        let sum: u64 = self.balances.iter().sum();
        println!("{ACCOUNTS} accounts, {sum} cents in all");
        let expected = ACCOUNTS as u64 * OPENING_BALANCE;
        if sum == expected { Ok(()) } else { Err("money is not conserved".into()) }
    }

    /// Every transfer that a teller said was accepted is in the journal.
    fn check_receipts(&self, path: &Path) -> Result<()> {
        let mut receipts = Vec::new();
        Lines::open(path, |numbers| receipts.extend(numbers))?;
        println!("{} receipts, {} transfers in the journal", receipts.len(), self.seqs.len());
        match receipts.iter().find(|seq| !self.seqs.contains(seq)) {
            Some(seq) => Err(format!("transfer {seq} was accepted and is lost").into()),
            None => Ok(()),
        }
    }
}

/// Moves the money; returns the balances of the two accounts after that.
fn post(balances: &mut [u64; ACCOUNTS], transfer: &Transfer) -> Option<(u64, u64)> {
    let left = balances.get(transfer.from)?.checked_sub(transfer.cents)?;
    let more = balances.get(transfer.to)?.checked_add(transfer.cents)?;
    if transfer.from == transfer.to {
        return None;
    }
    balances[transfer.from] = left;
    balances[transfer.to] = more;
    Some((left, more))
}

/// Applies transfers until the tellers have gone home and no transfer is left; returns how many
/// messages it took, and how many of them were new.
fn keep_books(
    transfers: &TypedQueue<Transfer>,
    journal: &mut Journal,
    tellers: &AtomicU64,
) -> Result<(u64, u64)> {
    let (mut taken, mut applied) = (0, 0);
    loop {
        let are_gone = tellers.load(SeqCst) == 0;
        let Some(first) = transfers.pop_timeout(Duration::from_millis(20))? else {
            if are_gone {
                return Ok((taken, applied));
            }
            continue;
        };
        let mut jobs = vec![first];
        jobs.extend(transfers.pop_batch(BATCH)?);
        taken += jobs.len() as u64;
        applied += journal.apply(&jobs)?;
        transfers.ack_batch(jobs)?;
    }
}

/// A teller at work. Leaves also if something goes wrong.
struct Teller<'a> {
    transfers: &'a TypedQueue<Transfer>,
    receipts: &'a Mutex<Lines>,
    at_work: &'a AtomicU64,
    random: u64,
}

impl Drop for Teller<'_> {
    fn drop(&mut self) {
        self.at_work.fetch_sub(1, SeqCst);
    }
}

impl Teller<'_> {
    /// Pushes transfers one by one; each is safe when `push` returns.
    fn work(mut self, count: u64) -> Result<u64> {
        for _ in 0..count {
            let from = self.below(ACCOUNTS as u64) as usize;
            let to = (from + 1 + self.below(ACCOUNTS as u64 - 1) as usize) % ACCOUNTS;
            let cents = 1 + self.below(300);
            let seq = self.transfers.push(&Transfer { from, to, cents })?;
            self.receipts.lock().unwrap().append(&[[seq.into()]])?;
        }
        Ok(count)
    }

    fn below(&mut self, end: u64) -> u64 {
        // A linear congruential generator with MMIX's constants (Knuth, TAOCP volume 2, 3.3.4).
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005);
        self.random = self.random.wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % end
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let dir = args.next().map_or_else(|| PathBuf::from("target/ledger"), PathBuf::from);
    let count: u64 = args.next().map_or(Ok(4000), |arg| arg.to_string_lossy().parse())?;
    fs::create_dir_all(&dir)?;
    let (journal_path, receipts_path) = (dir.join("journal"), dir.join("receipts"));
    let mut journal = Journal::open(&journal_path)?;
    let receipts = Mutex::new(Lines::open(&receipts_path, |_| ())?);
    println!("the journal ends with transfer {}", journal.last());
    journal.check_sum()?;
    // No transfer is given up, however often this program was killed while it worked on it.
    let options = Queue::options().durability(Durability::Always).sync_acks(true).max_attempts(0);
    let transfers = options.open(dir.join("transfers"))?.typed::<Transfer>();
    let waiting = transfers.queue().len();
    println!("{waiting} accepted transfers are not acked yet");
    let (start, at_work) = (Instant::now(), AtomicU64::new(TELLERS));
    let seed = u64::from(UNIX_EPOCH.elapsed()?.subsec_nanos());
    let (told, kept) = std::thread::scope(|scope| {
        let books = scope.spawn(|| keep_books(&transfers, &mut journal, &at_work));
        let (transfers, receipts, at_work) = (&transfers, &receipts, &at_work);
        let tellers: Vec<_> = (0..TELLERS)
            .map(|n| {
                let teller = Teller { transfers, receipts, at_work, random: seed ^ n << 32 };
                scope.spawn(move || teller.work(count / TELLERS + u64::from(n < count % TELLERS)))
            })
            .collect();
        let told = tellers.into_iter().map(|teller| teller.join().expect("no panic"));
        (told.collect::<Result<Vec<u64>>>(), books.join().expect("no panic"))
    });
    let (accepted, (taken, applied)) = (told?.iter().sum::<u64>(), kept?);
    let seconds = start.elapsed().as_secs_f64();
    println!("{taken} taken = {waiting} left over + {accepted} accepted; {applied} were new");
    println!(
        "{:.0} transfers a second; {} of all so far were not covered",
        applied as f64 / seconds,
        journal.refused
    );
    if taken != waiting + accepted {
        return Err("a transfer is missing, or came twice".into());
    }
    transfers.close()?;
    drop((journal, receipts));
    let journal = Journal::open(&journal_path)?;
    journal.check_sum()?;
    journal.check_receipts(&receipts_path)
}
