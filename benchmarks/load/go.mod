module mayfly/benchmarks/load

go 1.24
