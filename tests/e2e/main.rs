//! End-to-end tests: every one starts the real `litefs` binary.
