//! What the service costs beside a bare handler
