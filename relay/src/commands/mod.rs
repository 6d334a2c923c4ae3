//! The subcommands, a file each.

pub mod check;
pub mod run;
pub mod tail;
