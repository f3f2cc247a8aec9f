//! An append-only log that tells a torn tail from damage
