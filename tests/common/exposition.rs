//! A strict reader of Prometheus' text format 0.0.4: what the format allows and this server has
//! no use for (timestamps, empty lines, untyped samples) is an error here.

use std::collections::BTreeMap;

/// A page that obeys every rule.
#[derive(Debug)]
pub struct Page {
    kinds: BTreeMap<String, String>,
    /// By name with labels, as they are written.
    samples: BTreeMap<String, f64>,
}

/// The metric whose lines are being read.
struct Family {
    name: String,
    kind: Option<String>,
    /// In the order of the page: name, value of `le`, value.
    samples: Vec<(String, Option<String>, f64)>,
}

impl Page {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut page = Self {
            kinds: BTreeMap::new(),
            samples: BTreeMap::new(),
        };
        let text = text.strip_suffix('\n').ok_or("no line end at the end")?;
        let mut family: Option<Family> = None;
        for line in text.split('\n') {
            let wrong = |why: String| format!("{why}: {line:?}");
            if let Some(help) = line.strip_prefix("# HELP ") {
                page.close(family.take())?;
                let (name, text) = help.split_once(' ').unwrap_or((help, ""));
                is_help(text).map_err(wrong)?;
                is_name(name, ":").map_err(wrong)?;
                if page.kinds.contains_key(name) {
                    return Err(wrong("a second time".to_owned()));
                }
                let (name, kind) = (name.to_owned(), None);
                let samples = Vec::new();
                family = Some(Family {
                    name,
                    kind,
                    samples,
                });
                continue;
            }
            let family = family.as_mut().ok_or_else(|| wrong("no HELP".to_owned()))?;
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                family.set_kind(kind).map_err(wrong)?;
                page.kinds.insert(
                    family.name.clone(),
                    family.kind.clone().expect("it was set"),
                );
            } else {
                let (series, value) = family.sample(line).map_err(wrong)?;
                if page.samples.insert(series, value).is_some() {
                    return Err(wrong("a second time".to_owned()));
                }
            }
        }
        page.close(family)?;
        Ok(page)
    }

    fn close(&mut self, family: Option<Family>) -> Result<(), String> {
        family.map_or(Ok(()), |family| {
            family
                .check()
                .map_err(|why| format!("{}: {why}", family.name))
        })
    }

    /// A sample by its name with labels.
    pub fn value(&self, series: &str) -> f64 {
        let value = self.samples.get(series);
        *value.unwrap_or_else(|| panic!("no {series} among {:?}", self.samples.keys()))
    }

    pub fn has(&self, series: &str) -> bool {
        self.samples.contains_key(series)
    }

    /// All samples of a name, added up.
    pub fn sum(&self, name: &str) -> f64 {
        let samples = self.samples.iter();
        let of_it = samples.filter(|(series, _)| series.split('{').next() == Some(name));
        of_it.map(|(_, value)| value).sum()
    }

    pub fn series(&self) -> Vec<&str> {
        self.samples.keys().map(String::as_str).collect()
    }

    pub fn kind(&self, name: &str) -> Option<&str> {
        self.kinds.get(name).map(String::as_str)
    }
}

impl Family {
    fn set_kind(&mut self, line: &str) -> Result<(), String> {
        let kind = line.strip_prefix(&format!("{} ", self.name));
        let kind = kind.ok_or("TYPE of another metric than HELP")?;
        if self.kind.is_some() || !self.samples.is_empty() {
            return Err("TYPE not right behind HELP".to_owned());
        }
        if !["counter", "gauge", "histogram"].contains(&kind) {
            return Err("no such type".to_owned());
        }
        has_unit(&self.name)?;
        let is_total = self.name.ends_with("_total");
        if is_total != (kind == "counter") {
            return Err("`_total` is for counters, and all of them".to_owned());
        }
        let is_reserved = ["_bucket", "_sum", "_count", "_info"]
            .iter()
            .any(|suffix| self.name.ends_with(suffix));
        if is_reserved && self.name != "threadcast_build_info" {
            return Err("a suffix that means something else".to_owned());
        }
        self.kind = Some(kind.to_owned());
        Ok(())
    }

    /// One line of a sample; its series and value.
    fn sample(&mut self, line: &str) -> Result<(String, f64), String> {
        let kind = self.kind.as_deref().ok_or("no TYPE")?;
        let (series, value) = line.rsplit_once(' ').ok_or("no value")?;
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').ok_or("no `}`")?),
            None => (series, ""),
        };
        if series.ends_with("{}") {
            return Err("braces without labels".to_owned());
        }
        is_name(name, ":")?;
        let suffix = name.strip_prefix(&self.name);
        let suffix = suffix.ok_or("a sample of another metric")?;
        let le = labels_of(labels)?;
        match (kind, suffix) {
            ("histogram", "_bucket") if le.is_some() => {}
            ("histogram", "_sum" | "_count") | ("counter" | "gauge", "") if le.is_none() => {}
            _ => return Err(format!("no sample of a {kind}")),
        }
        let value = number(value)?;
        if kind != "gauge" && !(value.is_finite() && value >= 0.0) {
            return Err("it cannot be counted down".to_owned());
        }
        self.samples.push((name.to_owned(), le, value));
        Ok((series.to_owned(), value))
    }

    fn check(&self) -> Result<(), String> {
        let kind = self.kind.as_deref().ok_or("no TYPE")?;
        if self.samples.is_empty() {
            return Err("no sample".to_owned());
        }
        if kind != "histogram" {
            return Ok(());
        }
        let all = |suffix: &str| {
            let name = format!("{}{suffix}", self.name);
            self.samples.iter().filter(move |(of, ..)| *of == name)
        };
        let mut buckets = Vec::new();
        for (_, le, value) in all("_bucket") {
            buckets.push((number(le.as_deref().unwrap_or_default())?, *value));
        }
        let grows = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
        if !buckets.windows(2).all(grows) {
            return Err("buckets do not grow".to_owned());
        }
        let (last, number) = buckets.last().ok_or("no buckets")?;
        let counts: Vec<f64> = all("_count").map(|(.., value)| *value).collect();
        if *last != f64::INFINITY || counts != [*number] || all("_sum").count() != 1 {
            return Err("+Inf, _sum and _count do not fit".to_owned());
        }
        Ok(())
    }
}

/// Base units, at the end of the name (prometheus.io/docs/practices/naming).
fn has_unit(name: &str) -> Result<(), String> {
    const NO_BASE_UNITS: [&str; 12] = [
        "ms",
        "millis",
        "milliseconds",
        "micros",
        "nanos",
        "minutes",
        "hours",
        "kb",
        "kib",
        "mb",
        "mib",
        "percent",
    ];
    let bare = name.strip_suffix("_total").unwrap_or(name);
    let words: Vec<&str> = bare.split('_').collect();
    if let Some(word) = words.iter().find(|word| NO_BASE_UNITS.contains(word)) {
        return Err(format!("{word} is no base unit"));
    }
    let has = |word| words.contains(&word);
    let last = words.last().copied();
    let unit = if has("duration") || has("time") || has("seconds") {
        "seconds"
    } else if has("memory") || has("bytes") {
        "bytes"
    } else {
        return Ok(());
    };
    if last != Some(unit) {
        return Err(format!("it does not end with its unit {unit}"));
    }
    Ok(())
}

fn is_name(name: &str, others: &str) -> Result<(), String> {
    let is_letter = |it: char| it.is_ascii_alphabetic() || it == '_' || others.contains(it);
    let fits =
        name.starts_with(is_letter) && name.chars().all(|it| is_letter(it) || it.is_ascii_digit());
    if fits {
        Ok(())
    } else {
        Err(format!("{name:?} is no name"))
    }
}

fn is_help(text: &str) -> Result<(), String> {
    let escapes = text.replace(r"\\", "").replace(r"\n", "");
    if text.trim().is_empty() || escapes.contains('\\') || text.contains(char::is_control) {
        return Err("no help".to_owned());
    }
    Ok(())
}

/// Checks labels; the value of `le` if it is among them.
fn labels_of(mut text: &str) -> Result<Option<String>, String> {
    let mut seen: Vec<&str> = Vec::new();
    let mut le = None;
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").ok_or("no label")?;
        is_name(name, "")?;
        if name.starts_with("__") || seen.contains(&name) {
            return Err(format!("the label {name} may not be here"));
        }
        // No value has escapes.
        let (value, rest) = rest.split_once('"').ok_or("no end of a label")?;
        if value.is_empty() || value.contains(['\\', '\n']) {
            return Err(format!("the label's value {value:?}"));
        }
        if name == "le" {
            le = Some(value.to_owned());
        }
        seen.push(name);
        text = match rest.strip_prefix(',') {
            Some("") => return Err("a comma behind the last label".to_owned()),
            Some(more) => more,
            None if rest.is_empty() => rest,
            None => return Err("no comma between labels".to_owned()),
        };
    }
    Ok(le)
}

/// Go's ParseFloat, without what this server never writes.
fn number(text: &str) -> Result<f64, String> {
    if text == "+Inf" {
        return Ok(f64::INFINITY);
    }
    let is_plain = |it: u8| it.is_ascii_digit() || b"+-.eE".contains(&it);
    let value = text.bytes().all(is_plain).then(|| text.parse().ok());
    value.flatten().ok_or(format!("{text:?} is no number"))
}
