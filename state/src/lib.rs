//! Keyed state in memory, and checkpoints of it in RocksDB.
//!
//! This crate knows nothing of dataflow. It holds what an operator remembers per key ([`keyed`], [`slices`], [`timers`]) and for all keys ([`replicated`]), says how
//! keys are hashed and sharded ([`hash`], [`key_group`]), and keeps checkpoints on disk ([`store`], [`manifest`],
//! [`rocks`]). Both can be read from outside ([`reader`], [`held`]) and taken elsewhere ([`savepoint`]). Every manifest says of
//! which form the state is ([`schema`], [`trace`]), and state of an older form is brought to the newest ([`evolve`], [`migrate`]).
//! What decides is pure ([`checkpoint`]); what touches the disk is thin.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bits;
mod blocks;
pub mod checkpoint;
pub mod codec;
mod error;
pub mod evolve;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod groups;
pub mod hash;
pub mod held;
pub mod key_group;
pub mod keyed;
mod limit;
pub mod lines;
pub mod manifest;
pub mod migrate;
mod prefetch;
pub mod reader;
pub mod replicated;
pub mod rocks;
pub mod savepoint;
pub mod schema;
pub mod slices;
pub mod snapshot;
pub mod space;
pub mod store;
mod table;
pub mod timers;
pub mod trace;
mod walk;

pub use error::StateError;

/// A result with this crate's own error.
pub type Result<T, E = StateError> = std::result::Result<T, E>;
