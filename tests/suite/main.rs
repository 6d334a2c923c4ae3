//! The suite: what pg_duplex must show, on real PostgreSQL clusters, a real Kafka and real relays. One module a subject;
//! the lab (`tests/lab`) says how a test is written.

mod changes;
mod draining;
mod durable;
mod echo;
mod flush;
mod lab;
mod large;
mod layouts;
mod nested;
mod outages;
mod savepoints;
mod statements;
mod two_phase;
mod whole;
