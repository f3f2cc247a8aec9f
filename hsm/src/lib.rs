//! The slot of a node: PKCS#11, the embedded token, the worker pool
