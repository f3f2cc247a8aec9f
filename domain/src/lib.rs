//! What the cluster knows and the one pure function that changes it
