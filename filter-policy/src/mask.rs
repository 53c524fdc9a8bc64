//! `maskRequestHost`: what the sandbox sees as `Host` on its public URL.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::name::Name;

/// What stands for the port of the request, wherever it occurs.
const PORT: &str = "${PORT}";
/// The port that makes the text longest: where this one fits, every port does.
const LONGEST_PORT: &str = "65535";

/// Whether a mask is `host` or `host:port` once `${PORT}` is replaced, and nothing else: it becomes a
/// header, so that neither a line end nor user information or a path may get in.
pub(crate) fn is_valid(mask: &str) -> bool {
    let authority = mask.replace(PORT, LONGEST_PORT);
    let (host, port) = match authority.rsplit_once(':') {
        // The last colon of an IPv6 literal without a port is within its brackets.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        Some(_) | None => (authority.as_str(), None),
    };
    is_host(host) && port.is_none_or(is_port)
}

fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(literal) => literal.parse::<Ipv6Addr>().is_ok(),
        None => Name::parse(host).is_ok() || host.parse::<Ipv4Addr>().is_ok(),
    }
}

fn is_port(port: &str) -> bool {
    !port.starts_with(['+', '0']) && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::is_valid;

    #[test]
    fn a_host_with_an_optional_port() {
        for mask in [
            "localhost",
            "localhost:${PORT}",
            "${PORT}-app.example.com",
            "${PORT}.a.${PORT}.b:${PORT}",
            "a.b:1",
            "a.b:65535",
            "127.0.0.1:${PORT}",
            "[::1]",
            "[::1]:${PORT}",
        ] {
            assert!(is_valid(mask), "{mask}");
        }
    }

    #[test]
    fn and_nothing_else() {
        for mask in [
            "",
            ":80",
            ":${PORT}",
            "${PORT}",
            "a.b:",
            "a.b:0",
            "a.b:080",
            "a.b:+80",
            "a.b:65536",
            "a.b:1${PORT}",
            "a.b:${PORT}${PORT}",
            "a.b:80:80",
            "${port}.a",
            "${HOST}.a",
            "$PORT.a",
            "a b",
            "a.b\r\nX: y",
            "a.b\n",
            "a\0b",
            "a.b/",
            "a.b/c",
            "a.b?c",
            "a.b#c",
            "u@a.b",
            "u:p@a.b",
            "http://a.b",
            "::1",
            "[::1",
            "[1.2.3.4]",
            "[::1]x",
            "[fe80::1%eth0]",
            "a..b",
            "bücher.de",
            "a.b, c.d",
        ] {
            assert!(!is_valid(mask), "{mask:?}");
        }
        assert!(!is_valid(&format!("{}${{PORT}}", "a".repeat(59))));
    }
}
