//! A typed client that finds a live node and repeats safely
