//! The wire format: its bytes, that they read back, and that other bytes do no harm.

mod chunks;
#[path = "../../fuzz/decode.rs"]
mod decode;
mod golden;
mod hostile;
mod roundtrip;
mod samples;
mod view;
