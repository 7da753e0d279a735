// Checks manifests without a cluster: kubernetes-* [CRD.yaml ...] <manifests.yaml
//
// Kinds of Kubernetes are decoded strictly into the types of k8s.io/api, custom resources are compared with the schemas in
// the CRD files: an unknown or repeated field, a value of the wrong type, an unknown kind is a problem. Prints the
// manifests as one JSON array; with problems, prints those to standard error and ends with 1.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	serializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// The part of a custom resource's schema that is looked at.
type shape struct {
	Type                 string           `json:"type"`
	Properties           map[string]shape `json:"properties"`
	AdditionalProperties json.RawMessage  `json:"additionalProperties"`
	Items                *shape           `json:"items"`
	Required             []string         `json:"required"`
	Enum                 []any            `json:"enum"`
	KeepsUnknown         bool             `json:"x-kubernetes-preserve-unknown-fields"`
	IsIntOrString        bool             `json:"x-kubernetes-int-or-string"`
}

type definition struct {
	Spec struct {
		Group    string
		Names    struct{ Kind string }
		Versions []struct {
			Name   string
			Served bool
			Schema struct {
				OpenAPIV3Schema shape `json:"openAPIV3Schema"`
			}
		}
	}
}

func main() {
	all, problems, err := run(os.Args[1:], os.Stdin)
	if err == nil && len(problems) > 0 {
		err = errors.New(strings.Join(problems, "\n"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(all)
}

func run(definitions []string, manifests io.Reader) (all []any, problems []string, err error) {
	shapes, err := load(definitions)
	if err != nil {
		return nil, nil, err
	}
	decode, err := decoder()
	if err != nil {
		return nil, nil, err
	}
	documents := utilyaml.NewYAMLReader(bufio.NewReader(manifests))
	for {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return all, problems, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if len(bytes.TrimSpace(text)) == 0 {
			continue
		}
		var manifest map[string]any
		if err := yaml.UnmarshalStrict(text, &manifest); err != nil {
			return nil, nil, err
		}
		all = append(all, manifest)
		version, _ := manifest["apiVersion"].(string)
		kind, _ := manifest["kind"].(string)
		group, err := schema.ParseGroupVersion(version)
		if err != nil {
			return nil, nil, err
		}
		var found []string
		if custom, ok := shapes[group.WithKind(kind)]; ok {
			found = custom.compare("", withoutType(manifest))
		} else if _, _, err := decode.Decode(text, nil, nil); err != nil {
			found = []string{err.Error()}
		}
		for _, problem := range found {
			problems = append(problems, fmt.Sprintf("%s %s: %s", version, kind, problem))
		}
	}
}

func decoder() (*serializer.Serializer, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, autoscalingv2.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	options := serializer.SerializerOptions{Yaml: true, Strict: true}
	return serializer.NewSerializerWithOptions(serializer.DefaultMetaFactory, scheme, scheme, options), nil
}

func load(files []string) (map[schema.GroupVersionKind]shape, error) {
	shapes := map[schema.GroupVersionKind]shape{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		// Those of a Helm chart are wrapped in a condition.
		var lines [][]byte
		for line := range bytes.Lines(text) {
			if !bytes.HasPrefix(line, []byte("{{")) {
				lines = append(lines, line)
			}
		}
		var made definition
		if err := yaml.Unmarshal(bytes.Join(lines, nil), &made); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Base(file), err)
		}
		for _, version := range made.Spec.Versions {
			if version.Served {
				name := schema.GroupVersionKind{Group: made.Spec.Group, Version: version.Name, Kind: made.Spec.Names.Kind}
				shapes[name] = version.Schema.OpenAPIV3Schema
			}
		}
	}
	return shapes, nil
}

// The schema of a custom resource leaves the metadata's fields to Kubernetes.
func withoutType(manifest map[string]any) map[string]any {
	rest := map[string]any{}
	for name, value := range manifest {
		if name != "metadata" {
			rest[name] = value
		}
	}
	return rest
}

// Where the value differs from the schema.
func (s shape) compare(at string, value any) (problems []string) {
	say := func(format string, args ...any) {
		problems = append(problems, strings.TrimPrefix(at+": ", ": ")+fmt.Sprintf(format, args...))
	}
	if len(s.Enum) > 0 && !slices.Contains(s.Enum, value) {
		say("%v is none of %v", value, s.Enum)
	}
	switch is := value.(type) {
	case map[string]any:
		if s.Type != "object" {
			say("an object instead of %s", s.Type)
			return
		}
		for _, name := range s.Required {
			if _, ok := is[name]; !ok {
				say("%s is missing", name)
			}
		}
		var others *shape
		if len(s.AdditionalProperties) > 0 {
			others = new(shape)
			if json.Unmarshal(s.AdditionalProperties, others) != nil {
				others = nil
			}
		}
		for name, field := range is {
			inner, known := s.Properties[name]
			switch {
			case known:
				problems = append(problems, inner.compare(at+"."+name, field)...)
			case others != nil:
				problems = append(problems, others.compare(at+"."+name, field)...)
			case !s.KeepsUnknown:
				say("unknown field %q", name)
			}
		}
	case []any:
		if s.Type != "array" {
			say("a list instead of %s", s.Type)
			return
		}
		for i, item := range is {
			problems = append(problems, s.Items.compare(fmt.Sprintf("%s[%d]", at, i), item)...)
		}
	default:
		if s.IsIntOrString || s.KeepsUnknown {
			return
		}
		right := map[string]bool{"": true}
		switch is := value.(type) {
		case string:
			right["string"] = true
		case bool:
			right["boolean"] = true
		case float64:
			right["number"] = true
			right["integer"] = is == float64(int64(is))
		}
		if !right[s.Type] {
			say("%v instead of a value of type %s", value, s.Type)
		}
	}
	return problems
}
