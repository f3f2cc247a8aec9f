//! Commands that talk to a cluster
