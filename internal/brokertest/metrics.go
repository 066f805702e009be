package brokertest

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Metrics are the samples of a scrape by their names as in the text format,
// with labels in the order of their names. Of a histogram there are _count and
// _sum.
type Metrics map[string]float64

// ParseMetrics parses the response to a scrape.
func ParseMetrics(t testing.TB, r io.Reader) Metrics {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(r)
	if err != nil {
		t.Fatalf("parse metrics: %v", err)
	}
	all := make(Metrics)
	for name, family := range families {
		for _, m := range family.GetMetric() {
			labels := labelText(m)
			switch family.GetType() {
			case dto.MetricType_COUNTER:
				all[name+labels] = m.GetCounter().GetValue()
			case dto.MetricType_GAUGE:
				all[name+labels] = m.GetGauge().GetValue()
			case dto.MetricType_HISTOGRAM:
				all[name+"_count"+labels] = float64(m.GetHistogram().GetSampleCount())
				all[name+"_sum"+labels] = m.GetHistogram().GetSampleSum()
			}
		}
	}
	return all
}

// labelText returns the labels of a metric as {name="value"}, or nothing.
func labelText(m *dto.Metric) string {
	var labels []string
	for _, l := range m.GetLabel() {
		labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
	}
	if len(labels) == 0 {
		return ""
	}
	slices.Sort(labels)
	return "{" + strings.Join(labels, ",") + "}"
}

// Rise returns by how much a sample is larger than in before. One that is in
// neither is an error.
func (m Metrics) Rise(t testing.TB, before Metrics, sample string) float64 {
	t.Helper()
	if _, ok := m[sample]; !ok {
		t.Errorf("there is no sample %s among:\n%s", sample, m)
	}
	return m[sample] - before[sample]
}

// String lists the samples.
func (m Metrics) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "%s %v\n", name, m[name])
	}
	return b.String()
}

// With returns the samples whose names begin so.
func (m Metrics) With(prefix string) Metrics {
	all := make(Metrics)
	for name, value := range m {
		if strings.HasPrefix(name, prefix) {
			all[name] = value
		}
	}
	return all
}
