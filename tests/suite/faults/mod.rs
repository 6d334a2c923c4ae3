//! Exactly once through every crash. Tests that kill servers have clusters and a broker of their own.

mod backlog;
mod books;
mod drain;
mod durable;
mod large;
mod places;
mod random;
mod standby;
mod tail;
