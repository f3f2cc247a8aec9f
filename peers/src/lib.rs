//! Mutual TLS between members on raw public keys, and its lanes
