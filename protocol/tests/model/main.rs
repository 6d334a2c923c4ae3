//! The model of the conflict rules: nodes made of maps, which ask `duplex_protocol::rules` what to do.
//!
//! Two to five nodes with skewed clocks each make random transactions on what they see, with their own unique checks
//! holding, and get each other's transactions in random order; only the order of each origin is kept, and causal
//! order. Once all is delivered, all nodes must hold the same rows, and counters the sum of all additions. Taking one
//! register or guard away, or forgetting too early, must make it fail, else the model would prove nothing.
//!
//! `make converge-model ROUNDS=… SEED=…` runs as many rounds as one likes. A failure is cut down to its shortest
//! history before it is shown, and `SEED` brings it back.

mod node;
mod permutations;
mod plan;
mod rounds;
mod run;
mod table;
