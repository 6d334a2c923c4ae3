//! Looking a key up in a B-tree, mostly without a scan.
//!
//! A scan goes down the tree from its root, and is made for many rows. What changes that arrive ask for is one key each,
//! and these mostly come in ascending order: so the leaf where the last one stood is looked at first, next to that place.
//!
//! | module | subject |
//! |---|---|
//! | `probe` | a key's entries, or that there are none |
//! | `page` | how a leaf is laid out |
//! | `access` | the functions of PostgreSQL's own access method that are called |
//! | `scan` | scans that are kept, and reading the rows that entries point to |

mod access;
mod page;
mod probe;
mod scan;

pub(crate) use probe::{Found, Probe};
pub(crate) use scan::{begin_scan, fetch, let_go, scan_keys};
