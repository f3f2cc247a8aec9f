//! Real processes, real faults, and the checkers that judge them
