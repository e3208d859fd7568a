package models_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/quant"
)

// Hold a model in four bits for QLoRA; NF4 has double quantisation, too, which pays in larger models.
func ExampleLoad_quantised() {
	// A tiny model of the tests; a hub id or any folder of a Hugging Face checkpoint would do.
	m, err := models.Load(context.Background(), "../internal/golden/testdata/families/llama", models.Options{
		Backend: "go", Quantization: quant.NF4{},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	var values, statistics int64
	for _, p := range m.Parameters() {
		v, s := m.ParameterBytes(p)
		values, statistics = values+v, statistics+s
	}
	fmt.Println(values, "bytes of weights and codes,", statistics, "of statistics")
	// Output:
	// 24704 bytes of weights and codes, 960 of statistics
}

// Write a folder that bitsandbytes and this package load as it is.
func ExampleQuantise() {
	dir, err := os.MkdirTemp("", "gopeft")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	report, err := models.Quantise(context.Background(), "../internal/golden/testdata/families/llama", dir+"/nf4", quant.NF4{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(report.Tensors), "tensors,", report.BytesBefore, "bytes to", report.BytesAfter)
	// Output:
	// 14 tensors, 61440 bytes to 8640
}
