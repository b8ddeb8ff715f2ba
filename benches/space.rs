//! P12
fn main() {}
