//! Command line of arclet.

fn main() {}
