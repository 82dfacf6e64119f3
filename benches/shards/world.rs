//! Who publishes and listens where: channels by Zipf's law, subscribers on nodes.

/// A million subscribers, and what they have to do with a hundred thousand channels.
pub(crate) struct World {
    /// Of each channel, its part of all subscribers; the most popular first.
    audience: Vec<f64>,
    /// Of each channel, its part of all messages.
    traffic: Vec<f64>,
    pub(crate) subscribers: f64,
    pub(crate) messages: f64,
}

/// Which channels are published to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Traffic {
    /// Every channel alike: many small rooms, sensors, devices.
    Even,
    /// As much as it has subscribers: the popular ones are the busy ones.
    LikeAudience,
}

impl World {
    pub(crate) fn new(channels: usize, subscribers: f64, messages: f64, traffic: Traffic) -> Self {
        let weights: Vec<f64> = (1..=channels).map(|rank| 1.0 / rank as f64).collect();
        let all: f64 = weights.iter().sum();
        let audience: Vec<f64> = weights.iter().map(|weight| weight / all).collect();
        let traffic = match traffic {
            Traffic::Even => vec![1.0 / channels as f64; channels],
            Traffic::LikeAudience => audience.clone(),
        };
        Self {
            audience,
            traffic,
            subscribers,
            messages,
        }
    }

    /// Deliveries per second, all subscribers together.
    pub(crate) fn deliveries(&self) -> f64 {
        let both = self.audience.iter().zip(&self.traffic);
        both.map(|(audience, traffic)| audience * self.subscribers * traffic * self.messages)
            .sum()
    }

    /// The most popular channel: its messages per second, its subscribers.
    pub(crate) fn largest(&self) -> (f64, f64) {
        (
            self.traffic[0] * self.messages,
            self.audience[0] * self.subscribers,
        )
    }

    /// Subscribers placed on nodes by the load balancer, wherever there is room.
    pub(crate) fn anywhere(&self, nodes: usize, shards: usize, seed: u64) -> Followed {
        let mut random = Random(seed);
        let sums: Vec<f64> = running_sums(&self.audience);
        let here = (self.subscribers / nodes as f64) as usize;
        let mut wanted = vec![false; self.audience.len()];
        for _ in 0..here {
            let at = sums.partition_point(|sum| *sum < random.fraction());
            wanted[at.min(sums.len() - 1)] = true;
        }
        self.followed(&wanted, shards)
    }

    /// Subscribers sent to the nodes of their channel's shard, and to others when those are full.
    pub(crate) fn by_shard(&self, nodes: usize, shards: usize) -> Followed {
        let room = 1.05 * self.subscribers / nodes as f64;
        let mut wanted = vec![Vec::new(); nodes];
        let mut filled = vec![0.0; nodes];
        for (channel, part) in self.audience.iter().enumerate() {
            let mut left = part * self.subscribers;
            // The shard's nodes are every so-manieth; where it has several, a channel has its own first.
            let of_shard = (nodes / shards).max(1);
            let turn = (mix(!(channel as u64)) % of_shard as u64) as usize;
            let first = shard_of(channel, shards) + turn * shards;
            let own = (0..nodes).map(|step| first + step * shards);
            for node in own.chain(0..nodes).map(|node| node % nodes) {
                let takes = f64::min(left, room - filled[node]);
                if takes > 0.0 {
                    wanted[node].push(channel);
                    filled[node] += takes;
                    left -= takes;
                }
                if left <= 0.0 {
                    break;
                }
            }
        }
        let all = wanted.iter().map(|channels| {
            let mut wanted = vec![false; self.audience.len()];
            channels.iter().for_each(|channel| wanted[*channel] = true);
            self.followed(&wanted, shards)
        });
        let all: Vec<_> = all.collect();
        let mean = |of: fn(&Followed) -> f64| all.iter().map(of).sum::<f64>() / nodes as f64;
        Followed {
            channels: mean(|it| it.channels),
            shards: mean(|it| it.shards),
            by_shard: mean(|it| it.by_shard),
            by_channel: mean(|it| it.by_channel),
        }
    }

    fn followed(&self, wanted: &[bool], shards: usize) -> Followed {
        let mut follows = vec![false; shards];
        let wanted_channels = || (0..wanted.len()).filter(|channel| wanted[*channel]);
        wanted_channels().for_each(|channel| follows[shard_of(channel, shards)] = true);
        let traffic = |channel: usize| self.traffic[channel];
        let of_shards = (0..wanted.len()).filter(|channel| follows[shard_of(*channel, shards)]);
        Followed {
            channels: wanted_channels().count() as f64,
            shards: follows.iter().filter(|follows| **follows).count() as f64,
            by_shard: of_shards.map(traffic).sum(),
            by_channel: wanted_channels().map(traffic).sum(),
        }
    }

    /// The busiest of the shards: its part of all messages.
    pub(crate) fn busiest_shard(&self, shards: usize) -> f64 {
        let mut sums = vec![0.0; shards];
        for (channel, traffic) in self.traffic.iter().enumerate() {
            sums[shard_of(channel, shards)] += traffic;
        }
        sums.into_iter().fold(0.0, f64::max)
    }
}

/// What one node has to do with the channels and shards.
pub(crate) struct Followed {
    /// Channels with local subscribers.
    pub(crate) channels: f64,
    /// Shards that have one of them.
    pub(crate) shards: f64,
    /// Part of all messages that are in these shards.
    pub(crate) by_shard: f64,
    /// Part of all messages that are in these channels.
    pub(crate) by_channel: f64,
}

fn running_sums(parts: &[f64]) -> Vec<f64> {
    let mut sum = 0.0;
    let add = |part: &f64| {
        sum += part;
        sum
    };
    parts.iter().map(add).collect()
}

/// By a hash, as a shard or node is chosen.
fn shard_of(channel: usize, shards: usize) -> usize {
    (mix(channel as u64) % shards as u64) as usize
}

/// Numbers that look like chance and are the same every time (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Evenly between 0 and 1.
    pub(crate) fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.0) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Time until the next of events that come by chance, so many per microsecond.
    pub(crate) fn gap(&mut self, rate: f64) -> f64 {
        -(1.0 - self.fraction()).ln() / rate
    }
}

fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
