//! Names of the metrics that count what happens in a row.

/// A line of the metrics page that must grow.
#[derive(Clone, Debug)]
pub struct Metric {
    /// Name and labels, as on the page.
    pub line: String,
    /// By how much at least.
    pub least: f64,
}

impl Metric {
    /// A line by its name and labels; it must grow by one.
    pub fn named(line: &str) -> Metric {
        Metric { line: line.to_owned(), least: 1.0 }
    }

    /// For a row that does the same several times.
    pub fn times(self, times: usize) -> Metric {
        Metric { least: times as f64, ..self }
    }
}

/// Stream errors that the server sent.
pub fn stream_errors(condition: &str) -> Metric {
    Metric::named(&format!("rookery_stream_errors_total{{condition=\"{condition}\"}}"))
}

/// Stanzas of a wrong shape that were answered and went nowhere.
pub fn stanzas_refused() -> Metric {
    Metric::named("rookery_stanzas_refused_total")
}

/// Authentication attempts that failed.
pub fn login_failures() -> Metric {
    Metric::named("rookery_login_failures_total")
}

/// TLS handshakes that failed.
pub fn tls_failures() -> Metric {
    Metric::named("rookery_tls_failures_total")
}

/// What became of stanzas: kinds `message`, `presence`, `iq`; outcomes `delivered`, `answered`, `bounced`,
/// `ignored`, `taken`.
pub fn stanzas(kind: &str, outcome: &str) -> Metric {
    Metric::named(&format!("rookery_stanzas_total{{kind=\"{kind}\",outcome=\"{outcome}\"}}"))
}

/// Connections by why they ended: `closed`, `gone`, `late`, `silent`, `broke-a-rule`, `no-tls`, `stalled`,
/// `displaced`, `overflowed`.
pub fn ended(why: &str) -> Metric {
    Metric::named(&format!("rookery_connections_ended_total{{why=\"{why}\"}}"))
}
