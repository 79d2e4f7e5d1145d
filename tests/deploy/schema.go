// Reads dashboards by Grafana's schema, strictly: a field that is unexpected, missing or of another type is an error.
// tests/deploy/run gives it a module of its own.
package main

import (
	"bytes"
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/barchart"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// faults are empty if there are none: the library returns an error all the same.
func faults(raw []byte) string {
	read := dashboard.Dashboard{}
	if err := read.UnmarshalJSONStrict(raw); err != nil {
		return err.Error()
	}
	return ""
}

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(1)
}

func main() {
	runtime := cog.NewRuntime()
	runtime.RegisterPanelcfgVariant(barchart.VariantConfig())
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterPanelcfgVariant(table.VariantConfig())
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())
	// The queries of Infinity are not in the library: tests/deploy/grafana.py runs them.
	runtime.RegisterDataqueryVariant(prometheus.VariantConfig())
	for _, path := range os.Args[1:] {
		raw, err := os.ReadFile(path)
		if err != nil {
			fail("%v", err)
		}
		if found := faults(raw); found != "" {
			fail("%s:\n%s", path, found)
		}
		// The schema has to find mistakes, also in what panels have of their own.
		for _, name := range []string{"gridPos", "fieldConfig", "drawStyle", "tooltip"} {
			wrong := bytes.Replace(raw, []byte(`"`+name+`"`), []byte(`"wrong"`), 1)
			if bytes.Equal(wrong, raw) || faults(wrong) == "" {
				fail("%s: a wrong name of %s is not found", path, name)
			}
		}
		fmt.Printf("%s: valid by Grafana's schema\n", path)
	}
}
