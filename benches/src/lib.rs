//! What the service costs, beside a handler that does nothing but the cryptography.
//!
//! A figure of requests a second says more about the machine than about the service; the ratio to
//! [`bare`], driven by the same [`load`] in the same run, says what authentication, consensus and
//! storage cost. The load shares the machine with what it measures, so [`cpu`] tells what each side
//! of the wire spent: that ratio is the quieter one.

pub mod bare;
pub mod cluster;
pub mod cpu;
pub mod etcd;
pub mod load;
pub mod memory;
pub mod replica;
pub mod report;
pub mod scrape;
pub mod token;
