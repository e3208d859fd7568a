// Package peft is what all parameter-efficient fine-tuning methods share: a model
// with named adapters on a frozen base, their targets, their files in the format
// of Hugging Face's peft, and merging.
//
//	model, err := models.Load(ctx, "HuggingFaceTB/SmolLM2-135M-Instruct")
//	pm, err := peft.GetPeftModel(model, lora.LoraConfig{
//		R: 8, LoraAlpha: 32, LoraDropout: 0.1,
//		TargetModules: peft.Modules("q_proj", "v_proj"),
//	})
//	fmt.Println(pm.TrainableParameters())
//	err = pm.SavePretrained("results/adapter") // loads in Python's peft
//
// The base is never changed. An adapter is a plan (which modules, which tensors)
// and one vector of float32 values; it takes part in a program as an argument.
package peft
