//! A durable push, pop and ack.
#[allow(clippy::print_stdout, reason = "an example")]
fn main() -> keepq::Result<()> {
    let queue = keepq::Queue::open("target/hello")?;
    queue.push(b"pay 42")?; // on the disk when this returns
    while let Some(job) = queue.pop()? {
        println!("{}: {}", job.seq(), String::from_utf8_lossy(&job));
        job.ack()?; // never comes back
    }
    queue.close()
}
