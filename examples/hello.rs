//! A durable push, pop and ack.

#![allow(clippy::print_stdout, reason = "an example")]

use keepq::Queue;

fn main() -> keepq::Result<()> {
    let queue = Queue::open("target/hello")?; // a directory; created if it is missing
    queue.push(b"pay 42")?; // on the disk when this returns
    queue.push_batch(["pay 43", "pay 44"])?; // all or none, one sync
    while let Some(job) = queue.pop()? {
        println!("attempt {}: {}", job.attempts(), String::from_utf8_lossy(&job));
        job.ack()?; // it never comes back; after nack() or a drop it does
    }
    queue.close()
}
