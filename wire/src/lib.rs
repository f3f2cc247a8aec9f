//! Requests, answers and problem codes of the HTTP API
