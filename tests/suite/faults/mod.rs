//! Exactly once through every crash. Each test has clusters and a broker of its own, and kills them.

mod backlog;
mod drain;
mod durable;
mod large;
mod random;
mod standby;
mod tail;
