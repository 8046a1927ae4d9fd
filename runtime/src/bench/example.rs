//! A made-up measurement, for tests of what is written about measurements. Seeded, so it is the same each time.

use std::time::Duration;

use super::latency::SECOND_NS;
use super::measurement::{CheckpointTaken, LatencyKind, Measurement, OperatorTime, Second};
use super::noise::Noise;
use super::{Distribution, Machine};

/// Numbers that look random: multiplication and addition, the high bits of it.
pub(super) struct Random(pub(super) u64);

impl Random {
    /// The next one, from 0 to below 1.
    pub(super) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A latency that is mostly near `typical` nanoseconds and sometimes much more.
    fn latency(&mut self, typical: f64) -> u64 {
        let tail = 1.0 / (1.0 - self.next()).powf(0.45);
        (typical * (0.6 + 0.4 * self.next()) * tail) as u64
    }
}

/// A run of `seconds` under 100,000 events a second, with a checkpoint every ten seconds and one stall.
pub(super) fn measurement(seconds: u64) -> Measurement {
    let mut random = Random(seconds);
    let words = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
    let mut made = Measurement {
        job: "spend".to_string(),
        settings: words(&[("workers", "2"), ("batch size", "1,024"), ("checkpoint interval", "10s")]),
        load: "constant:100k".to_string(),
        offered_per_s: 100_000.0,
        achieved_per_s: 99_998.4,
        started_unix_ms: 1_795_000_000_000,
        duration: Duration::from_secs(seconds),
        warm_up: Duration::from_secs(2),
        machine: Machine { cpu: "A Processor 9000".to_string(), cores: 2, os: "Linux 6.1.0".to_string() },
        ..Measurement::default()
    };
    for second in 0..seconds {
        let checkpoint = second % 10 == 5;
        let stall = second == seconds * 2 / 3;
        let slow = if stall {
            120.0
        } else if checkpoint {
            4.0
        } else {
            1.0
        };
        for (kind, typical, count) in
            [(LatencyKind::WindowResult, 250_000.0, 2_000), (LatencyKind::RecordToResult, 900_000.0, 2_000)]
        {
            for _ in 0..count {
                let ns = random.latency(typical * slow);
                made.latencies_mut(kind).record(second * SECOND_NS, ns, 3);
            }
        }
        made.seconds.push(Second {
            due: 100_000,
            read: if stall { 82_000 } else { 100_000 + (random.next() * 300.0) as u64 },
            results: 6_000,
            backlog: if stall { 18_000 } else { (random.next() * 900.0) as u64 },
            memory_bytes: Some(180_000_000 + second.min(20) * 1_500_000 + u64::from(checkpoint) * 9_000_000),
        });
        if checkpoint {
            made.checkpoints.push(CheckpointTaken {
                start: Duration::from_millis(second * 1_000 + 120),
                duration: Duration::from_millis(240),
                bytes: 1_200_000,
                pause: Duration::from_micros(2_100),
            });
        }
    }
    for (name, records, busy_s) in
        [("orders", 100_000, 0.21), ("key_by", 100_000, 0.08), ("spend", 100_000, 0.27), ("sink <json>", 6_000, 0.02)]
    {
        let mut queue = Distribution::new();
        (0..10_000).for_each(|_| queue.record(random.latency(30_000.0), 1));
        let mut exchange = Distribution::new();
        if name == "spend" {
            (0..10_000).for_each(|_| exchange.record(random.latency(50_000.0), 1));
        }
        let (records, busy) = (records * seconds, Duration::from_secs_f64(busy_s * seconds as f64));
        made.operators.push(OperatorTime { name: name.to_string(), records, busy, queue, exchange });
    }
    let mut noise = Noise { duration: Duration::from_secs(1), threads: 2, ..Noise::default() };
    (0..200_000).for_each(|_| noise.delays.record(random.latency(40.0), 10));
    noise.gaps = noise.delays.clone();
    made.noise = Some(noise);
    made
}
