//! Tests of chunked bodies.
