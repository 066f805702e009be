package main

import (
	"context"
	"log/slog"
	"math"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// newRegistry returns the registry of all metrics.
func (b *broker) newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		b.server,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		newBuildInfo(),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "cloakroom_log_lines_dropped_total",
			Help: "Log lines that were dropped, because the reader of the log was too slow, or its disk full.",
		}, func() float64 { return float64(droppedLines.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "cloakroom_config_last_reload_successful",
			Help: "1 if the last configuration that was read is in force, 0 if it was refused.",
		}, func() float64 {
			ok, _ := b.lastReload()
			if ok {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "cloakroom_config_last_reload_success_timestamp_seconds",
			Help: "When the configuration in force was read, as a Unix time.",
		}, func() float64 {
			_, at := b.lastReload()
			return float64(at.UnixMilli()) / 1000
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "cloakroom_config_hash",
			Help: "Hash of the configuration in force, equal on replicas with the same settings and the same " +
				"first session key. It reveals nothing.",
		}, func() float64 { return float64(b.configHash()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "cloakroom_sessions",
			Help: "Sessions in the store, those of all replicas together, at most half a minute ago. With more " +
				"than 10000 keys on a Redis server it is an estimate. NaN if they cannot be counted.",
		}, b.sessionCount),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "cloakroom_replicas",
			Help: "Replicas of the app that share the store, this one included.",
		}, func() float64 {
			n, _ := b.replicas.Counts()
			return float64(n)
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "cloakroom_replicas_differing",
			Help: "Replicas whose version or configuration differs from that of this one.",
		}, func() float64 {
			_, differing := b.replicas.Counts()
			return float64(differing)
		}),
	)
	return registry
}

// newBuildInfo returns a metric with the value 1 and the build as its labels.
func newBuildInfo() prometheus.Collector {
	v, rev := buildInfo()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "cloakroom_build_info",
		Help:        "1, with version, commit and Go version of the program as labels.",
		ConstLabels: prometheus.Labels{"version": v, "commit": rev, "go_version": runtime.Version()},
	})
	info.Set(1)
	return info
}

// lastReload returns whether the last configuration that was read is in force,
// and when the one in force was read.
func (b *broker) lastReload() (ok bool, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.reloadFailed, b.inForceSince
}

// configHash returns the hash of the configuration in force.
func (b *broker) configHash() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.hash
}

// setReloadFailed records the result of a reload.
func (b *broker) setReloadFailed(failed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reloadFailed = failed
}

const (
	// countInterval is the time between two counts of the sessions.
	countInterval = 30 * time.Second
	countTimeout  = 5 * time.Second
)

// countSessions counts the sessions in the store again and again until ctx
// ends, so that a scrape does not call the store.
func (b *broker) countSessions(ctx context.Context) {
	tick := time.NewTicker(countInterval)
	defer tick.Stop()
	for {
		limited, cancel := context.WithTimeout(ctx, countTimeout)
		n, err := b.store.CountSessions(limited)
		cancel()
		count := float64(n)
		if err != nil {
			b.log.Debug("sessions not counted", "err", err)
			count = math.NaN()
		}
		b.sessions.Store(&count)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// sessionCount returns the last result of countSessions, or NaN.
func (b *broker) sessionCount() float64 {
	if n := b.sessions.Load(); n != nil {
		return *n
	}
	return math.NaN()
}

// metricsHandler serves the metrics of a registry, and its own.
func metricsHandler(registry *prometheus.Registry, log *slog.Logger) http.Handler {
	return promhttp.InstrumentMetricHandler(registry, promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}))
}
