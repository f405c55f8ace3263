// Command node-settings reads settings for a distribution's nodes as the distribution does, and
// refuses fields that it does not know.
//
//	node-settings talos|openshift|rancher <FILE
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	configv1 "github.com/openshift/api/config/v1"
	machinev1alpha1 "github.com/openshift/api/machineconfiguration/v1alpha1"
	"github.com/rancher/wharfie/pkg/registries"
	"github.com/siderolabs/talos/pkg/machinery/config/configloader"
	yamlv2 "gopkg.in/yaml.v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	yamlutil "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// A machine that is neither in a container nor to be installed.
type metal struct{}

func (metal) String() string        { return "metal" }
func (metal) RequiresInstall() bool { return false }
func (metal) InContainer() bool     { return false }

func talos() error {
	config, err := configloader.NewFromStdin()
	if err != nil {
		return err
	}
	_, err = config.Validate(metal{})
	return err
}

// k3s and RKE2.
func rancher() error {
	decoder := yamlv2.NewDecoder(os.Stdin)
	decoder.SetStrict(true)
	return decoder.Decode(&registries.Registry{})
}

func openshift() error {
	documents := yamlutil.NewYAMLReader(bufio.NewReader(os.Stdin))
	for {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal(text, &meta); err != nil {
			return err
		}
		kinds := map[string]any{
			"config.openshift.io/v1 ImageDigestMirrorSet": &configv1.ImageDigestMirrorSet{},
			"config.openshift.io/v1 ImageTagMirrorSet":    &configv1.ImageTagMirrorSet{},
			"v1 ConfigMap": &corev1.ConfigMap{},
			// In this version of the module it is not v1 yet, with the same fields.
			"machineconfiguration.openshift.io/v1 PinnedImageSet": &machinev1alpha1.PinnedImageSet{},
		}
		object := kinds[meta.APIVersion+" "+meta.Kind]
		if object == nil {
			return fmt.Errorf("unknown: %v", meta)
		}
		if err := yaml.UnmarshalStrict(text, object); err != nil {
			return err
		}
	}
}

func main() {
	readers := map[string]func() error{"talos": talos, "openshift": openshift, "rancher": rancher}
	if len(os.Args) != 2 || readers[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: node-settings talos|openshift|rancher <FILE")
		os.Exit(2)
	}
	if err := readers[os.Args[1]](); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
