package models_test

import (
	"context"
	"fmt"
	"log"

	"github.com/gopeft/gopeft/models"
)

// Put a new head on a pre-trained encoder.
func ExampleLoadClassifier() {
	// A tiny encoder of the tests; "sentence-transformers/all-MiniLM-L6-v2" would do as well.
	base, err := models.LoadClassifier(context.Background(), "../internal/golden/testdata/encoders/bert_trunk", models.ClassifierOptions{
		Options: models.Options{Backend: "go"}, Labels: []string{"refund", "delivery", "other"}, Seed: 1,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer base.Close()
	fmt.Println(base.TaskType(), base.Labels())
	report := base.LoadReport()
	fmt.Println(report.Loaded, "parameters loaded, new:", report.New)
	// Output:
	// SEQ_CLS [refund delivery other]
	// 39 parameters loaded, new: [classifier.bias classifier.weight]
}
