//! Consensus and the replicated state: openraft on our log, sled as a cache
