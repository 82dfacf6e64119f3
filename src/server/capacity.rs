//! How many connections the machine can carry: what the configuration asks for, as far as
//! descriptors and threads go.

use super::machine::Machine;
use super::relay;
use crate::config::Limits;

/// Descriptors that are not connections: standard streams, database, listener, wake handles.
const OWN_DESCRIPTORS: usize = 32;

/// Descriptors of one WebSocket: its socket and its wake handle.
const DESCRIPTORS_PER_CLIENT: usize = 2;

/// Threads that are neither connections nor tiny_http's: the server's own, watchers, handlers.
const OWN_THREADS: usize = 32;

/// The part of all descriptors or threads that requests in hand may take, as a divisor.
const REST_SHARE: usize = 4;

/// The limits, lowered to what the machine allows, and which of its rules decided.
pub(super) struct Capacity {
    pub(super) limits: Limits,
    lowered_by: Option<String>,
}

impl Capacity {
    /// What this machine gives; never less than one connection and one request.
    pub(super) fn within(limits: &Limits, machine: &Machine) -> Self {
        let threads = machine.threads.iter().map(|bound| bound.threads).min();
        let threads = threads.unwrap_or(usize::MAX);
        let share = (machine.descriptors / relay::DESCRIPTORS_PER_CONNECTION).min(threads);
        let rest_requests = (share / REST_SHARE).clamp(1, limits.max_rest_requests.max(1));
        // tiny_http has a thread for each.
        let relayed = rest_requests + relay::READ_CONNECTIONS.min(rest_requests);

        let own = OWN_DESCRIPTORS + relay::DESCRIPTORS_PER_CONNECTION * relayed;
        let by_descriptors = machine.descriptors.saturating_sub(own) / DESCRIPTORS_PER_CLIENT;
        let by_threads = machine.threads.iter().map(|bound| {
            let left = bound.threads.saturating_sub(OWN_THREADS + relayed);
            (left, bound.rule.clone())
        });
        let rule = format!(
            "the process may have {} descriptors, {DESCRIPTORS_PER_CLIENT} for each WebSocket; raise it with ulimit -n, or LimitNOFILE= of systemd",
            machine.descriptors
        );
        let (most, rule) = by_threads
            .chain([(by_descriptors, rule)])
            .min_by_key(|(most, _)| *most)
            .expect("the descriptors are always there");

        let asked = limits.max_connections.max(1);
        let mut limits = limits.clone();
        limits.max_connections = asked.min(most.max(1));
        limits.max_rest_requests = rest_requests;
        Self {
            lowered_by: (limits.max_connections < asked).then_some(rule),
            limits,
        }
    }

    /// Says how many connections there may be and what decides that.
    pub(super) fn log(&self, asked: &Limits) {
        let most = self.limits.max_connections;
        match &self.lowered_by {
            Some(rule) => log::info!(
                "{most} connections at most, not {}: {rule}",
                asked.max_connections
            ),
            None => log::info!("{most} connections at most, as --max-connections says"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::Bound;
    use super::*;

    fn machine(descriptors: usize, threads: &[usize]) -> Machine {
        let bound = |threads: &usize| Bound {
            threads: *threads,
            rule: format!("{threads} threads"),
        };
        Machine {
            descriptors,
            threads: threads.iter().map(bound).collect(),
        }
    }

    #[test]
    fn the_narrowest_of_flag_descriptors_and_threads_decides() {
        let limits = Limits::default();
        for (descriptors, threads, connections, rest_requests, rule) in [
            (1 << 20, &[][..], 10_000, 32, None),
            (usize::MAX, &[16_126], 10_000, 32, None),
            (20_140, &[], 10_000, 32, None),
            (20_138, &[], 9_999, 32, Some("20138 descriptors")),
            (1024, &[16_126, 900], 442, 32, Some("1024 descriptors")),
            (80, &[], 9, 6, Some("80 descriptors")),
            (1 << 20, &[16_126, 4_915], 4_847, 32, Some("4915 threads")),
            (1 << 20, &[60], 9, 15, Some("60 threads")),
            (1 << 20, &[0], 1, 1, Some("0 threads")),
            (0, &[], 1, 1, Some("0 descriptors")),
        ] {
            let capacity = Capacity::within(&limits, &machine(descriptors, threads));
            let found = (
                capacity.limits.max_connections,
                capacity.limits.max_rest_requests,
            );
            let case = format!("{descriptors} descriptors, threads {threads:?}");
            assert_eq!(found, (connections, rest_requests), "{case}");
            let said = capacity.lowered_by.as_deref();
            assert_eq!(said.is_some(), rule.is_some(), "{case}: {said:?}");
            let said = said.unwrap_or_default();
            assert!(said.contains(rule.unwrap_or_default()), "{case}: {said}");
        }
    }
}
