//! Prometheus' text format, version 0.0.4
//! (prometheus.io/docs/instrumenting/exposition_formats): metrics line by line, each with what
//! it is before its samples.

use std::fmt::{Display, Write};

use crate::metrics::Histogram;

/// The media type.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page of metrics on its way. Names, labels and help are ours and need no escapes.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    text: String,
}

/// A label and its value.
pub(super) type Label = (&'static str, &'static str);

impl Exposition {
    /// What only grows; the name ends with `_total`.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, "", value);
    }

    /// The same for each value of a label.
    pub(super) fn counters<L: Display, V: Display>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) {
        self.family(name, "counter", help);
        for (of, value) in samples {
            self.sample(name, &format!("{{{label}=\"{of}\"}}"), value);
        }
    }

    /// What goes up and down.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.gauges(name, help, [(&[][..], value)]);
    }

    /// The same, unless nobody knows it here.
    pub(super) fn known_gauge(&mut self, name: &str, help: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.gauge(name, help, value);
        }
    }

    /// The same for several labels.
    pub(super) fn gauges<'a, V: Display>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (&'a [Label], V)>,
    ) {
        self.family(name, "gauge", help);
        for (labels, value) in samples {
            let pairs: Vec<String> = labels
                .iter()
                .map(|(label, of)| format!("{label}=\"{of}\""))
                .collect();
            let labels = match &pairs[..] {
                [] => String::new(),
                pairs => format!("{{{}}}", pairs.join(",")),
            };
            self.sample(name, &labels, value);
        }
    }

    /// How often what was how large; `unit` of what it counts make one of the name's.
    pub(super) fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram, unit: f64) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut count = 0;
        for (bound, so_far) in histogram.buckets() {
            let bound = match bound {
                Some(bound) => (bound as f64 / unit).to_string(),
                None => "+Inf".to_owned(),
            };
            self.sample(&bucket, &format!("{{le=\"{bound}\"}}"), so_far);
            count = so_far;
        }
        self.sample(&format!("{name}_sum"), "", histogram.sum() as f64 / unit);
        self.sample(&format!("{name}_count"), "", count);
    }

    /// The page.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.text.into_bytes()
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        self.line(format_args!("{name}{labels} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a string takes everything");
    }
}
