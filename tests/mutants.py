"""Plausible bugs, one at a time in a copy of the package: does a test find each of them?

    python tests/mutants.py [WORD ...]

Runs the bugs whose file or name holds one of the words, or all of them (20 minutes on two cores).
Exits with 1 if a bug survives, and with 2 if a text or a test is not where it is looked for.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

# A bug is four lines: a file of hsjax/ and the bug's name; the test that should find it; a text
# that is in the file once; and what takes its place.
BUGS = """
convolution.py: rows below taken for rows above
test_convolution.py::test_value_and_gradients_are_those_of_the_definition
- (same, (size - 1 - i, i, 0), same, same)
+ (same, (i, size - 1 - i, 0), same, same)

convolution.py: an even kernel off by a row
test_convolution.py::test_value_and_gradients_are_those_of_the_definition
- sum(taller)[:, after : after + height]
+ sum(taller)[:, before : before + height]

convolution.py: sums in bfloat16
test_convolution.py::test_gradient_in_bfloat16_is_summed_in_float32
- wide = computed_in(x.dtype)
+ wide = x.dtype

devices.py: a device's batch taken for all devices'
test_convolution.py::test_devices_compute_their_shares_and_add_them
- return 1 if _APART.get() else jax.device_count()
+ return jax.device_count()

devices.py: the first run's state for all runs
test_together.py::test_runs_end_as_they_would_alone
- lambda x, i=i: x[i], tree
+ lambda x, i=i: x[0], tree

experiment.py: a run that diverged is saved
test_together.py::test_one_that_diverges_leaves_the_others
- return [ended.get(i, own) for i, own in enumerate(states)]
+ return states

experiment.py: runs at different steps as one
test_together.py::test_stopped_they_all_go_on_and_one_that_is_behind_catches_up
- by_step.setdefault(int(member.state.step), []).append(i)
+ by_step.setdefault(0, []).append(i)

leaderboard.py: chosen on test images
test_leaderboard.py::test_strengths_and_samplers_are_chosen_on_validation_images
- for entry in judged or tested.values())
+ for entry in tested.values())

leaderboard.py: chosen over all seeds
test_leaderboard.py::test_strengths_and_samplers_are_chosen_on_validation_images
- first_seeds = (entry.of_seed(min(entry.runs)) for
+ first_seeds = (entry for

leaderboard.py: batch statistics beside running ones
test_leaderboard.py::test_runs_are_joined_by_what_was_trained_alike
- "evaluate.batch_norm", "data.leave_out"
+ "evaluate.neighbours", "data.leave_out"

leaderboard.py: a tie by one seed's error
test_leaderboard.py::test_places_are_shared_within_the_spread_over_seeds
- np.abs(means) / np.sqrt([len(v) for v in values])
+ np.abs(means)

leaderboard.py: not at equal error
test_leaderboard.py::test_the_ratio_is_at_equal_error
- there = sweep.equal_error(twins, sampler, line.mean("mse_sum"))
+ there = sweep.equal_error(twins, sampler, 1.0)

leaderboard.py: a learned prior among the fixed ones
test_leaderboard.py::test_the_pages_are_whole
- fixed = [line for line in unfitted if not learned(line)]
+ fixed = unfitted

leaderboard.py: a command without what differs
test_leaderboard.py::test_a_command_trains_the_run_that_it_stands_beside
- if field not in OF_SWEEP and there.get(field) != value:
+ if field not in OF_SWEEP and field in there and there[field] < value:

sweep.py: other programs in one group
test_together.py::test_groups_hold_what_shares_a_program
- if entry[0] == alike and name not in names
+ if name not in names

sweep.py: a folder twice in a group
test_together.py::test_groups_hold_what_shares_a_program
- entry[0] == alike and name not in names
+ entry[0] == alike

runs.py: seeds don't matter
test_runs.py::test_seeds_parts_and_samplers_give_other_samples
- keys(_whole("seed", seed, 0))
+ keys(0)

runs.py: every part the same
test_runs.py::test_seeds_parts_and_samplers_give_other_samples
- jax.random.fold_in(key, part) if part else key
+ key

runs.py: embeddings of any step
test_runs.py::test_embeddings_of_another_step_are_not_used
- (int(arrays["step"]), str(arrays["batch_norm"])) != wanted
+ False

exporting.py: any file for the card's
test_runs.py::test_a_damaged_export_is_one_line
- != sums.get(name)
+ == 0

output.py: images in another order
test_runs.py::test_one_picture_holds_all_images_in_order
- np.concatenate([images, empty])
+ np.concatenate([images[::-1], empty])

files.py: something is overwritten
test_runs.py::test_nothing_is_overwritten
- if exists:
+ if False:

sampling.py: one key for all samplers
test_runs.py::test_seeds_parts_and_samplers_give_other_samples
- key = jax.random.fold_in(key, zlib.crc32(name.encode()))
+ key = jax.random.fold_in(key, 7)

training.py: decay of every parameter
test_training.py::test_weight_decay_is_of_kernels_alone
- path[-1].key == "kernel"
+ True

training.py: averages of the step before
test_training.py::test_averages_of_the_weights
- config.train.ema, state, params, batch_stats)
+ config.train.ema, state, state.params, state.batch_stats)

training.py: a cosine from the first step
test_training.py::test_schedules_of_the_learning_rate
- cosine(step - warm)
+ cosine(step)

logs.py: the worst is the best
test_logs.py::test_the_best_step_is_of_validation_alone
- min(finite
+ max(finite

checkpoints.py: the best is removed
test_experiment.py::test_the_best_checkpoint_is_kept_and_judged
- if step != best
+ if True

experiment.py: watched without averages
test_experiment.py::test_terms_of_other_images_stand_at_every_checkpoint
- z = jax.jit(type(posterior).sample)(posterior, key)
+ z = posterior.mean

losses.py: every class on one axis
test_losses.py::test_an_axis_for_each_class
- stride * labels
+ 0 * labels

losses.py: a class of one counts
test_losses.py::test_an_axis_for_each_class
- count >= 2.0
+ count >= 1.0

methods/spherical.py: weights that never grow
test_methods.py::test_the_published_classes_have_the_follow_ups_weights
- e > 100.0
+ e > 1e9

posteriors.py: sigma is the variance
test_methods.py::test_sigma_is_the_root_of_the_variance_and_scales_the_noise
- exp(0.5 * self.
+ exp(self.

posteriors.py: z without sigma in training
test_methods.py::test_sigma_is_the_root_of_the_variance_and_scales_the_noise
- self.std * noise
+ noise

models.py: BatchNorm of the batch when encoding
test_models.py::test_the_network_is_that_of_a_float64_loop
- def encode(self, images: Array, *, train: bool = False
+ def encode(self, images, *, train=True

models.py: BatchNorm of the batch when decoding
test_models.py::test_the_network_is_that_of_a_float64_loop
- def decode(self, z: Array, *, train: bool = False
+ def decode(self, z: Array, *, train=True

models.py: running statistics too quick
test_models.py::test_running_statistics_follow_training_and_rule_evaluation
- momentum=0.9
+ momentum=0.1

models.py: no projection
test_models.py::test_the_network_is_that_of_a_float64_loop
- coordinates.project(z) if self.project else z
+ z

models.py: scale before the projection
test_models.py::test_the_network_is_that_of_a_float64_loop
- scale * (coordinates.project(z)
+ (coordinates.project(scale * z)

models.py: upsampling tiles the image
test_models.py::test_the_network_is_that_of_a_float64_loop
- x[:, :, None, :, None], (b, h, 2, w, 2, c)
+ x[:, None, :, None], (b, 2, h, 2, w, c)

models.py: pooling takes the maximum
test_models.py::test_the_network_is_that_of_a_float64_loop
- jnp.mean(x.reshape
+ jnp.max(x.reshape

models.py: BatchNorm forgets its shift
test_models.py::test_batch_norm_of_a_mean_far_above_the_spread
- (1.0 - self.momentum) * shift
+ 0.0 * shift

models.py: another slope of the activation
test_models.py::test_the_network_is_that_of_a_float64_loop
- leaky_relu(x, 0.2)
+ leaky_relu(x, 0.01)

models.py: blocks without their skip
test_models.py::test_the_network_is_that_of_a_float64_loop
- x if self.skip is None
+ 0.0 if self.skip is None

methods/rae.py: decoder's biases pulled too
test_methods.py::test_rae_is_half_the_squared_norm_and_the_decoders_kernels
- if path[-1].key == "kernel"
+ if path[-1].key in ("kernel", "bias")

posteriors.py: the last proposal that is not accepted
test_posteriors.py::test_samples_have_the_laws_cosines_and_the_expected_ones_derivative
- log_odds > jnp.log(uniform)
+ log_odds < jnp.log(uniform)

posteriors.py: proposals accepted without their volume
test_posteriors.py::test_samples_have_the_laws_cosines_and_the_expected_ones_derivative
- log_odds += (n - 1) *
+ log_odds += 0.0 *

posteriors.py: the derivative of the accepted proposal
test_posteriors.py::test_samples_have_the_laws_cosines_and_the_expected_ones_derivative
- speed = sine * slope * some / ((n - 1) * ratio)
+ speed = sine / jnp.sqrt(4.0 * kappa**2 + (n - 1) ** 2)

posteriors.py: tangents not across the direction
test_posteriors.py::test_samples_have_the_laws_cosines_and_the_expected_ones_derivative
- noise - along * direction
+ noise

posteriors.py: Debye's expansion with another coefficient
test_posteriors.py::test_functions_of_kappa_are_mpmaths_in_float32
- 3.0 - 5.0 * q
+ 3.0 - 4.0 * q

posteriors.py: density of the unit sphere at any radius
test_posteriors.py::test_densities_are_per_area_of_the_sphere
- _functions_of_kappa(n, self.kappa)[0] - log_area(n, self.radius)
+ _functions_of_kappa(n, self.kappa)[0] - log_area(n)

posteriors.py: derivative of the KLD by automatic differentiation
test_posteriors.py::test_nothing_breaks_from_kappa_0_to_10_000
- slope * dkappa, kappa * slope * dkappa)
+ slope * dkappa, slope * dkappa)

distances.py: the uniform law has as many points
test_distances.py::test_the_uniform_law_is_many_points_at_equal_distances
- 1.0 / (12.0 * count**2)
+ 0.0

distances.py: a circle is a line
test_distances.py::test_transport_on_a_circle_is_the_best_assignment
- [v - 1.0, v, v + 1.0]
+ [v, v, v]

distances.py: a point is compared with itself
test_distances.py::test_mmd_is_a_float64_loops
- others = 1.0 - jnp.eye
+ others = 1.0 - 0.0 * jnp.eye

distances.py: no centre
test_distances.py::test_mmd_is_a_float64_loops
- x, y = x - centre, y - centre
+ x, y = x - 0.0, y - 0.0

distances.py: an angle for points without one
test_distances.py::test_values_and_derivatives_are_finite_for_degenerate_batches
- > 1e-24
+ >= 0.0

methods/mixture.py: the nearest component alone counts
test_learned_priors.py::test_the_kld_from_a_mixture_is_of_joint_densities
- found = logsumexp(joint, axis=1)
+ found = jnp.max(joint, axis=1)

methods/mixture.py: a deviation is a variance
test_learned_priors.py::test_the_kld_from_a_mixture_is_of_joint_densities
- * jnp.exp(-log_variance)
+ * jnp.exp(-2.0 * log_variance)

methods/mixture.py: one component for all samples
test_learned_priors.py::test_samples_of_a_mixture_are_of_its_components
- self.log_weights, shape=(count,)
+ 0.0 * self.log_weights, shape=(count,)

methods/mixture.py: components that are alike count
test_learned_priors.py::test_dead_components_and_one_hot_responsibilities_are_said
- jnp.exp(information)
+ jnp.exp(information + within)

methods/vampprior.py: a pixel that is cut off is lost
test_learned_priors.py::test_the_vampprior_is_the_mean_of_its_pseudo_inputs_posteriors
- u + lax.stop_gradient(jnp.clip(u, 0.0, 1.0) - u)
+ jnp.clip(u, 0.0, 1.0)

methods/vqvae.py: the codebook gets the gradient
test_learned_priors.py::test_tokens_become_their_nearest_codes_and_gradients_go_straight_through
- outputs + lax.stop_gradient(quantised - outputs)
+ quantised

methods/vqvae.py: the batch replaces the average
test_learned_priors.py::test_the_codebook_follows_by_a_running_average_over_three_steps
- DECAY * variables["sums"] + (1.0 - DECAY) * sums
+ DECAY * variables["sums"] + sums

methods/vqvae.py: dead codes stay dead
test_learned_priors.py::test_codes_that_nobody_uses_begin_anew_at_tokens_of_the_batch
- jnp.where(dead[:, None], start * chosen, sums)
+ sums

methods/vqvae.py: all tokens alike
test_learned_priors.py::test_new_codes_are_drawn_as_often_as_each_token_uses_them
- jnp.log(variables["uses"])
+ jnp.log(0.0 * variables["uses"] + jnp.sum(variables["uses"], axis=0))

methods/standard.py: variance without its weight
test_learned_priors.py::test_the_decoders_variance_is_the_running_mean_error_of_a_value
- 2.0 * variance * kld
+ variance * kld

training.py: statistics are never changed
test_learned_priors.py::test_statistics_are_trained_kept_and_restored
- found["method"] = self._setup.method.update(self._hyper, posterior, z, **context)
+ found["method"] = self._statistics

experiment.py: a method begins without images
test_learned_priors.py::test_a_methods_first_variables_see_training_images
- images[np.sort(chosen)])
+ None)

samplers/networks.py: what is held out is trained on
test_learned_samplers.py::test_the_held_out_tenth_is_never_trained_on_and_decides
- np.sort(order[some:])
+ np.sort(order)

samplers/networks.py: the last parameters, not the best
test_learned_samplers.py::test_the_held_out_tenth_is_never_trained_on_and_decides
- return best, {
+ return parameters, {

samplers/two_stage.py: no KLD
test_learned_samplers.py::test_the_second_stages_bound_is_its_formula
- losses.gaussian_kl(q.mean, q.log_variance), jnp
+ 0.0, jnp

samplers/flow.py: the Jacobian has another sign
test_learned_samplers.py::test_a_flow_integrates_to_one_and_is_its_own_inverse
- log_jacobian - jnp.sum(log_scale, axis=1)
+ log_jacobian + jnp.sum(log_scale, axis=1)

samplers/flow.py: orders are not undone
test_learned_samplers.py::test_a_flow_begins_as_the_gaussian_of_the_latents
- jnp.argsort(constants["orders"][i])
+ constants["orders"][i]

samplers/ncp.py: the ratio upside down
test_learned_samplers.py::test_the_ratio_of_ncp_is_that_of_two_known_gaussians
- jax.nn.softplus(-real) + jax.nn.softplus(false)
+ jax.nn.softplus(real) + jax.nn.softplus(-false)

samplers/ncp.py: proposals are not weighed
test_learned_samplers.py::test_the_ratio_of_ncp_is_that_of_two_known_gaussians
- jax.random.categorical(choice_key, logits)
+ jax.random.categorical(choice_key, 0.0 * logits)

samplers/codes.py: a token sees itself
test_learned_samplers.py::test_a_token_does_not_see_itself_or_those_after_it
- codes[:, :-1]], axis=1)
+ codes[:, 1:]], axis=1)

samplers/codes.py: no mask
test_learned_samplers.py::test_a_token_does_not_see_itself_or_those_after_it
- is_causal=True
+ is_causal=False

sampling.py: a fit outlives its checkpoint
test_learned_samplers.py::test_a_fit_is_kept_until_something_it_depends_on_changes
- json.dumps([__version__, steps])
+ json.dumps([__version__])

metrics/memorisation.py: a test image is its own neighbour
test_metrics.py::test_who_is_nearest_is_found_by_all_pairs
- from_test[index, start + index] = np.inf
+ from_test[index, index] = np.inf

metrics/generation.py: a memoriser is not named
test_evaluation.py::test_a_planted_memoriser_is_found_out
- > usual + 4 * error
+ > usual + 40 * error

methods/svae.py: kappa without n
test_methods.py::test_svae_has_n_plus_1_outputs_a_direction_and_kappa
- scale = n * hyper.kappa_scale
+ scale = hyper.kappa_scale

methods/swae.py: the distance is not times n
test_methods.py::test_swae_compares_with_its_target_and_counts_the_distance_n_times
- n * distances.sliced
+ distances.sliced

methods/wae.py: scale ignored
test_methods.py::test_wae_is_the_mmd_of_its_kernel
- numbers.scale * factor
+ factor

methods/spherical_swae.py: an island is uniform
test_methods.py::test_an_island_is_nearer_to_its_own_samples
- jnp.full(count, hyper.kappa
+ jnp.full(count, 0.0 * hyper.kappa

methods/sphere_encoder.py: noise is not stratified
test_methods.py::test_noise_of_the_sphere_encoder_has_all_sizes_up_to_the_angle
- size = (order + jax.random.uniform(size_key, (batch,), jnp.float32)) / batch
+ size = jax.random.uniform(size_key, (batch,), jnp.float32)

methods/sphere_encoder.py: what is near learns from what is far
test_methods.py::test_the_sphere_encoder_is_consistent_in_pixels_and_in_latents
- losses.squared_error(lax.stop_gradient(reconstructions), images)
+ losses.squared_error(reconstructions, images)

methods/sphere_encoder.py: one step too few
test_methods.py::test_the_sphere_encoder_samples_in_steps
- range(1, steps)
+ range(2, steps)

sampling.py: sample.steps ignored
test_methods.py::test_a_method_of_ones_own_trains_learns_is_kept_and_samples
- steps = config.sample.steps
+ steps = 1

methods/sphere_ae.py: not centred
test_methods.py::test_spherical_codes_are_centred_and_of_norm_root_n
- coordinates.project(z - jnp.mean(z, axis=-1, keepdims=True))
+ coordinates.project(z)

methods/standard.py: mean over n for both specs
test_methods.py::test_the_papers_methods_are_its_equations
- if numbers.spec == "published" else 1
+ if numbers.spec else 1

training.py: a method's variables not trained
test_methods.py::test_a_method_of_ones_own_trains_learns_is_kept_and_samples
- self.variables = params.get("method", {})
+ self.variables = jax.lax.stop_gradient(params.get("method", {}))

training.py: running statistics of the step itself
test_methods.py::test_what_is_not_training_sees_the_statistics_from_before
- self._at_rest: VAE = nnx.merge(setup.graph, *trees)
+ self._at_rest: VAE = self.networks

training.py: labels of other images
test_methods.py::test_labels_are_those_of_the_batchs_images
- return jax.tree.map(lambda x: devices.split(x[indices]), examples)
+ return devices.split(examples[0][indices]), devices.split(examples[1][indices[::-1]])

inference.py: own samples of other variables
test_methods.py::test_a_method_of_ones_own_trains_learns_is_kept_and_samples
- (key, count, n, **context)
+ (key, count, n, **context | {"variables": {"shift": 0.0}})

config.py: what a stored config lacks is missing
test_config.py::test_a_field_that_an_older_config_json_lacks_counts_as_its_default
- json.loads(json.dumps(defaults)) | own
+ own

losses.py: error averaged over pixels
test_losses.py::test_squared_error_sums_an_image_and_averages_the_batch
- jnp.sum((x - reconstruction) ** 2) / x.shape[0]
+ jnp.mean((x - reconstruction) ** 2)

losses.py: KL without the entropy
test_losses.py::test_gaussian_kl_is_equation_1
- jnp.expm1(log_variance) - log_variance
+ jnp.expm1(log_variance)

losses.py: equation 3 with unbiased variance
test_losses.py::test_cartesian_kl_is_equation_3_and_the_mean_distance_to_the_prior
- jnp.var(x, 0)
+ jnp.var(x, 0, ddof=1)

statistics.py: biased variance of the statistics
test_losses.py::test_coordinate_moments_are_those_of_the_columns
- ddof=1
+ ddof=0

losses.py: gains from k = 2
test_losses.py::test_paper_spec_is_equations_4_and_5
- gain = jnp.append(lax.rsqrt(jnp.arange(1, n
+ gain = jnp.append(lax.rsqrt(jnp.arange(2, n + 1

losses.py: "half" is one half
test_losses.py::test_paper_spec_is_equations_4_and_5
- "half": diagonal
+ "half": 0.5

losses.py: variance for the spread
test_losses.py::test_paper_spec_is_equations_4_and_5
- (spread - spec.spread_target)
+ (variance - spec.spread_target)

losses.py: terms in another order
test_losses.py::test_paper_spec_is_equations_4_and_5
- (angles[0], radius[0], angles[1], radius[1])
+ (angles[0], angles[1], radius[0], radius[1])

losses.py: overall gains ignored
test_losses.py::test_paper_spec_is_equations_4_and_5
- sum(g * term for g,
+ sum(term for _,

losses.py: annealing without an end
test_losses.py::test_annealing
- jnp.minimum(epoch, length)
+ epoch

training.py: same noise in every step
test_training.py::test_flips_and_noise_have_a_key_of_their_own_in_every_step
- jax.random.fold_in(step_key, state.step)
+ step_key

training.py: same noise in every epoch
test_training.py::test_the_same_images_are_seen_with_other_noise_in_every_step_and_epoch
- fold_in(step_key, state.step)
+ fold_in(step_key, state.step % experiment.steps)

training.py: flips and noise from one key
test_training.py::test_flips_and_noise_have_a_key_of_their_own_in_every_step
- noise_key = jax.random.split(jax.random.fold_in(
+ noise_key = (lambda key: (key, key))(jax.random.fold_in(

training.py: data.flip ignored
test_training.py::test_flips_and_noise_have_a_key_of_their_own_in_every_step
- flip=config.data.flip)
+ flip=False)

training.py: same order in every epoch
test_training.py::test_an_epoch_shows_every_image_and_the_next_another_order
- jax.random.fold_in(epoch_key, epoch)
+ epoch_key

training.py: clipping after Adam
test_training.py::test_gradients_are_clipped_before_adam_sees_them
- optimizer = optax.chain(
+ optimizer = (lambda *parts: optax.chain(*parts[::-1]))(

training.py: decay an epoch late
test_training.py::test_gradients_are_clipped_before_adam_sees_them
- {e * steps:
+ {(e + 1) * steps:

training.py: decay a step late
test_training.py::test_gradients_are_clipped_before_adam_sees_them
- {e * steps:
+ {e * steps + 1:

training.py: annealing by steps
test_training.py::test_numbers_of_a_step_follow_its_epoch_and_stand_at_its_place
- epoch = state.step // setup.steps + 1
+ epoch = state.step + 1

training.py: relative beta ignored
test_training.py::test_numbers_of_a_step_follow_its_epoch_and_stand_at_its_place
- objective.beta * state.beta_scale
+ objective.beta

training.py: relative beta twice
test_training.py::test_numbers_of_a_step_follow_its_epoch_and_stand_at_its_place
- objective.beta * state.beta_scale
+ objective.beta * state.beta_scale**2

training.py: relative beta from the start
test_experiment.py::test_beta_relative_to_the_first_epoch
- jnp.where(epoch == 1, 1.0, beta)
+ jnp.where(epoch == 0, 1.0, beta)

training.py: Adam's epsilon ignored
test_training.py::test_gradients_are_clipped_before_adam_sees_them
- eps=train.adam_eps
+ eps=1e-8

training.py: terms always at the first place
test_training.py::test_numbers_of_a_step_follow_its_epoch_and_stand_at_its_place
- row.at[index]
+ row.at[0]

training.py: loss without beta
test_training.py::test_a_step_follows_the_gradient_of_equation_2_or_6[paper]
- mse + beta *
+ mse +

training.py: padding counted as error
test_training.py::test_a_step_follows_the_gradient_of_equation_2_or_6[paper]
- return batches.crop(images, *self._setup.shape[:2])
+ return images[:, : self._setup.shape[0], : self._setup.shape[1]]

training.py: running statistics lost
test_training.py::test_a_step_leaves_all_that_the_next_one_needs
- found = nnx.to_pure_dict(nnx.state(self.networks, nnx.BatchStat))
+ found = nnx.to_pure_dict(nnx.state(self._at_rest, nnx.BatchStat))

training.py: optimiser state lost in a step
test_training.py::test_a_step_leaves_all_that_the_next_one_needs
- updates, optimizer = setup
+ optimizer, (updates, _) = state.optimizer, setup

methods/spherical.py: angle_gain of the config ignored
test_training.py::test_every_field_of_the_loss_reaches_the_objective
- angle_gain=angle_gain,
+ angle_gain=1.0,

methods/spherical.py: radius_gain is angle_gain
test_training.py::test_every_field_of_the_loss_reaches_the_objective
- radius_gain=radius_gain,
+ radius_gain=angle_gain,

methods/spherical.py: compression of the config ignored
test_training.py::test_every_field_of_the_loss_reaches_the_objective
- compression=compression,
+ compression="full",

methods/spherical.py: std_angle_gain of the config ignored
test_training.py::test_every_field_of_the_loss_reaches_the_objective
- std_angle_gain=std_angle_gain
+ std_angle_gain=500_000.0

methods/spherical.py: epsilons of the config swapped
test_training.py::test_every_field_of_the_loss_reaches_the_objective
- variance_eps=variance_eps,
+ variance_eps=eps,

training.py: last batch dropped
test_training.py::test_an_epoch_shows_every_image_and_the_next_another_order
- epoch), count, batch_size)
+ epoch), count, batch_size)[:-1]

batches.py: last batch filled up with one image
test_batches.py::test_epoch_order_shows_every_image
- order[: steps * batch_size - count]
+ 0 * order[: steps * batch_size - count]

batches.py: images upside down
test_batches.py::test_prepare_mirrors_about_half_of_the_images
- images[..., ::-1, :]
+ images[..., ::-1, :, :]

batches.py: a batch mirrored as one
test_batches.py::test_prepare_mirrors_about_half_of_the_images
- (*images.shape[:-3], 1, 1, 1)
+ (1, 1, 1)

batches.py: 256 levels for 255
test_batches.py::test_prepare_scales_to_the_unit_interval
- 1 / 255
+ 1 / 256

batches.py: odd pixel before
test_batches.py::test_pad_puts_the_odd_pixel_after
- (e // 2, e - e // 2)
+ (e - e // 2, e // 2)

batches.py: crop off by one
test_batches.py::test_crop_undoes_pad
- (images.shape[-3] - height) // 2
+ (images.shape[-3] - height + 1) // 2

data.py: digits: splits overlap
test_data.py::test_digits_are_scikit_learns_split_in_five
- images[~test], digits.target[~test]
+ images, digits.target

evaluation.py: z without sigma in the evaluation
test_evaluation.py::test_what_is_judged_is_what_it_is_called
- jax.jit(type(test).sample)(test, key)
+ test.mean + 1.0

evaluation.py: fit_split swapped
test_evaluation.py::test_what_is_judged_is_what_it_is_called
- fit_split == "train"
+ fit_split != "train"

evaluation.py: training labels reversed
test_evaluation.py::test_what_is_judged_is_what_it_is_called
- taught = dataset.train_labels, dataset.test_labels
+ taught = dataset.train_labels[::-1], dataset.test_labels

evaluation.py: classes of other latents
test_evaluation.py::test_what_is_judged_is_what_it_is_called
- latents.diagnostics(embedded.test, embedded.test_labels)
+ latents.diagnostics(embedded.test, embedded.test_labels[::-1])

evaluation.py: colours of other latents
test_evaluation.py::test_what_is_judged_is_what_it_is_called
- arrays["test_labels"] = dataset.test_labels
+ arrays["test_labels"] = dataset.test_labels[::-1]

evaluation.py: training images judged
test_evaluation.py::test_what_is_judged_is_what_it_is_called
- dataset.test_images, dataset.test_labels
+ dataset.train_images, dataset.train_labels

sampling.py: fitted to sigma
test_evaluation.py::test_what_is_judged_is_what_it_is_called
- sampler.fit(posterior.mean, p
+ sampler.fit(posterior.std, p

evaluation.py: reference of test images
test_evaluation.py::test_what_is_judged_is_what_it_is_called
- bank.mean[chosen]
+ test.mean[:count]

inference.py: last batch's filler judged
test_evaluation.py::test_what_is_judged_is_what_it_is_called
- z[indices]))[mask])
+ z[indices])))

evaluation.py: error per row, not value
test_evaluation.py::test_what_is_judged_is_what_it_is_called
- int(np.prod(setup.shape))
+ setup.shape[0]

evaluation.py: interpolation backwards
test_evaluation.py::test_what_is_judged_is_what_it_is_called
- slerp(means[a], means[b]
+ slerp(means[b], means[a]

inference.py: images cut, not rounded
test_evaluation.py::test_images_are_clipped_and_rounded_as_a_file_would_hold_them
- np.rint(255.0 *
+ (255.0 *

inference.py: images not clipped
test_evaluation.py::test_images_are_clipped_and_rounded_as_a_file_would_hold_them
- np.clip(images, 0.0, 1.0)
+ images

inference.py: BatchNorm of the batch when judging
test_experiment.py::test_metrics_are_those_of_the_model
- batch_norm == "batch"
+ batch_norm != "batch"

inference.py: test error averaged over pixels
test_experiment.py::test_metrics_are_those_of_the_model
- jnp.sum((images - decode
+ jnp.mean((images - decode

metrics/generation.py: KID to the reconstructions
test_evaluation.py::test_each_comparison_is_of_the_sets_that_it_names
- kernel_distance(compared.samples.values, compared.test.values)
+ kernel_distance(compared.samples.values, compared.reconstructions.values)

metrics/generation.py: real and fake swapped
test_evaluation.py::test_each_comparison_is_of_the_sets_that_it_names
- test.values, compared.samples.values, test.k, test.radii
+ compared.samples.values, test.values, test.k, compared.samples.radii

metrics/generation.py: self-FD called FD
test_evaluation.py::test_each_comparison_is_of_the_sets_that_it_names
- frechet_distance(mine, compared.test.moments)
+ frechet_distance(mine, compared.reconstructions.moments)

metrics/generation.py: reference to the test images
test_evaluation.py::test_each_comparison_is_of_the_sets_that_it_names
- train.moments, reconstructions.moments
+ train.moments, test.moments

metrics/frechet.py: Frechet without the cross term
test_metrics.py::test_frechet_distance_agrees_with_a_matrix_square_root
- - 2.0 * overlap
+ - 0.0 * overlap

metrics/frechet.py: Frechet's product not symmetric
test_metrics.py::test_frechet_distance_agrees_with_a_matrix_square_root
- root @ b.covariance @ root
+ a.covariance @ b.covariance

metrics/frechet.py: Frechet: means not squared
test_metrics.py::test_frechet_distance_agrees_with_a_matrix_square_root
- np.sum((a.mean - b.mean) ** 2)
+ np.linalg.norm(a.mean - b.mean)

metrics/frechet.py: Frechet: biased covariance
test_metrics.py::test_moments_are_those_of_numpy
- scatter / (count - 1)
+ scatter / count

metrics/kid.py: KID with the diagonal
test_metrics.py::test_kernel_distance_is_that_of_a_double_loop
- aa - _self_similarity(a, bias) +
+ aa +

metrics/kid.py: KID biased
test_metrics.py::test_kernel_distance_is_that_of_a_double_loop
- (size * (size - 1))
+ size**2

metrics/kid.py: KID's kernel squared
test_metrics.py::test_kernel_distance_is_that_of_a_double_loop
- k * k * k
+ k * k

metrics/kid.py: KID draws with repeats
test_metrics.py::test_kernel_distance_is_that_of_a_double_loop
- replace=False
+ replace=True

metrics/prdc.py: balls: a point its own neighbour
test_metrics.py::test_shares_are_those_of_a_naive_loop
- exact, k, axis=1)[:, k]
+ exact, k, axis=1)[:, k - 1]

metrics/prdc.py: precision is density
test_metrics.py::test_shares_are_those_of_a_naive_loop
- precision=float(np.mean(balls > 0))
+ precision=float(np.mean(balls) / k)

metrics/prdc.py: coverage is precision
test_metrics.py::test_shares_are_those_of_a_naive_loop
- coverage=float(
+ coverage=float(np.mean(balls > 0)) + 0 * float(

metrics/prdc.py: density not over k
test_metrics.py::test_shares_are_those_of_a_naive_loop
- np.mean(balls) / k
+ np.mean(balls)

metrics/neighbours.py: k + 1 neighbours vote
test_metrics.py::test_neighbours_vote_as_in_a_naive_loop
- KNeighborsClassifier(k,
+ KNeighborsClassifier(k + 1,

metrics/neighbours.py: k-NN's labels reversed
test_metrics.py::test_neighbours_vote_as_in_a_naive_loop
- algorithm="brute").fit(bank, bank_labels)
+ algorithm="brute").fit(bank, bank_labels[::-1])

metrics/neighbours.py: probe fitted to the queries
test_metrics.py::test_probe_has_not_seen_the_queries
- max_iter=100).fit(bank, bank_labels)
+ max_iter=100).fit(queries, query_labels)

metrics/latents.py: within is between
test_metrics.py::test_diagnostics_are_those_of_plain_loops
- ("overlap_within", same), ("overlap_between", ~same)
+ ("overlap_within", ~same), ("overlap_between", same)

metrics/latents.py: volume of one dimension more
test_metrics.py::test_log_volume_has_the_closed_forms_of_two_and_three_dimensions
- (n - 1 - k) * 0.5
+ (n - k) * 0.5

metrics/features.py: classifier trained on the test split
test_features.py::test_it_learns_and_is_the_same_again
- images = dataset.train_images
+ images = dataset.test_images

samplers/mixture.py: mixture's weights ignored
test_samplers.py::test_a_mixture_draws_each_cluster_as_often_as_it_is_met
- np.log(mixture.weights_)
+ 0.0 * mixture.weights_

samplers/vmf.py: vMF: kappa of another dimension
test_samplers.py::test_vmf_samples_pass_a_test_against_rejection
- kappa = concentration(n,
+ kappa = concentration(n + 1,

samplers/vmf.py: vMF fitted to the spread
test_samplers.py::test_vmf_matches_mean_and_total_variance_of_what_it_was_fitted_to
- units.mean(axis=0)
+ units.std(axis=0)

samplers/mixture.py: covariance's root transposed
test_samplers.py::test_samplers_with_a_covariance_keep_mean_and_shape_of_the_cloud
- matmul(noise, factor.T
+ matmul(noise, factor

samplers/base.py: covariance for its root
test_samplers.py::test_samplers_with_a_covariance_keep_mean_and_shape_of_the_cloud
- np.sqrt(np.maximum(values, 0.0))
+ np.maximum(values, 0.0)

samplers/angles.py: angles drawn independently
test_samplers.py::test_samplers_with_a_covariance_keep_mean_and_shape_of_the_cloud
- root(correlation),
+ np.eye(len(correlation)),

samplers/base.py: largest radius for the mean one
test_samplers.py::test_the_radius_is_the_mean_of_the_embeddings
- radii.mean()
+ radii.max()

samplers/sphere.py: uniform sphere not projected
test_samplers.py::test_samples_have_the_shape_and_follow_the_key
- project(sample_normal(zeros, key, count))
+ sample_normal(zeros, key, count)

samplers/vmf.py: density of the unit sphere
test_densities.py::test_samples_agree_with_their_density
- log_area(n, max(radius, 1e-30))
+ log_area(n)

samplers/mixture.py: a component's volume forgotten
test_densities.py::test_a_density_on_the_sphere_integrates_to_1
- 0.5 * jnp.sum(jnp.log(variance)) +
+ 0.0 +

samplers/mixture.py: a radius less in the projection
test_densities.py::test_a_density_on_the_sphere_integrates_to_1
- n * jnp.log(length)
+ (n - 1) * jnp.log(length)

samplers/vmf.py: Debye's first term alone
test_densities.py::test_functions_of_kappa_are_those_of_bessel_functions
- (16.0 * order**2)
+ 1e300

checkpoints.py: oldest checkpoint restored
test_checkpoints.py::test_the_newest_comes_back_and_the_last_two_are_kept
- reversed(steps)
+ steps

checkpoints.py: oldest checkpoints kept
test_checkpoints.py::test_the_newest_comes_back_and_the_last_two_are_kept
- self.steps()[: -self.keep]
+ self.steps()[self.keep :]

checkpoints.py: arrays of a checkpoint mixed up
test_checkpoints.py::test_arrays_of_one_shape_are_not_confused
- {i:04d}
+ {i}

experiment.py: trained on the test split
test_experiment.py::test_training_is_given_the_train_split_and_the_seed
- examples = run.dataset.train_images, run.dataset.train_labels
+ examples = run.dataset.test_images, run.dataset.test_labels

experiment.py: seed ignored
test_experiment.py::test_training_is_given_the_train_split_and_the_seed
- return run.setup.initial(seed, run.objective,
+ return run.setup.initial(0, run.objective,

experiment.py: optimiser state not restored
test_experiment.py::test_a_stopped_run_ends_as_if_it_had_not_been
- checkpoints.restore(initial) or initial
+ (checkpoints.restore(initial) or initial)._replace(optimizer=initial.optimizer)

experiment.py: an epoch's row is its last step's
test_experiment.py::test_an_epochs_row_is_the_mean_over_its_steps
- np.mean(row[:steps]
+ np.mean(row[steps - 1]

training.py: a resumed epoch starts again
test_experiment.py::test_a_stopped_run_ends_as_if_it_had_not_been
- steps_done(state) % len(order)
+ 0

data.py: held-out images are trained on
test_data.py::test_held_out_images_are_whole_and_apart
- np.sort(drawn[held:])
+ np.sort(drawn)

data.py: labels of other images beside those that are held out
test_data.py::test_held_out_images_are_whole_and_apart
- test_labels=None if labels is None else labels[held_out]
+ test_labels=None if labels is None else labels[drawn[:held]]

experiment.py: nothing is held out
test_experiment.py::test_held_out_images_are_never_trained_on
- data.hold_out(dataset, share, watch)
+ dataset

data.py: left out of training alone
test_data.py::test_classes_are_left_out_whole_and_nothing_else_is
- for split in ("train", "test"):
+ for split in ("train",):

data.py: test images in validation
test_experiment.py::test_classes_that_are_left_out_are_never_trained_on
- if judged == "validation":
+ if judged == "train":

data.py: grey by the mean
test_data.py::test_colours_become_grey_as_pillow_does_it
- 19595, 38470, 7471
+ 21845, 21846, 21845

data.py: images in the corner
test_data.py::test_images_are_fitted_to_the_middle_of_black
- (pad // 2, pad - pad // 2)
+ (0, pad)

experiment.py: nothing is left out
test_experiment.py::test_classes_that_are_left_out_are_never_trained_on
- dataset, left_out = data.leave_out(
+ _, left_out = data.leave_out(

experiment.py: an older data.json is other data
test_experiment.py::test_classes_that_are_left_out_are_never_trained_on
- there.pop(_COUNT, None)
+ there.setdefault(_COUNT, 1)

evaluation.py: errors of other images
test_evaluation.py::test_scores_of_unusual_images_are_of_their_own_latents_and_errors
- ood.Encoded(bank, means, squared(images, means))
+ ood.Encoded(bank, means, squared(images, means[::-1]))

evaluation.py: scores against test means
test_evaluation.py::test_scores_of_unusual_images_are_of_their_own_latents_and_errors
- _of_outside(bank.mean,
+ _of_outside(test.mean,

metrics/ood.py: the conventions swapped
test_ood.py::test_what_is_positive_is_what_the_name_says
- false_positive_rate(-outside, -inside)
+ false_positive_rate(outside, inside)

metrics/ood.py: a tie counts whole
test_ood.py::test_rates_are_scikit_learns
- for side in ("left", "right"))
+ for side in ("right", "right"))

metrics/ood.py: an alarm above a score
test_ood.py::test_rates_are_those_of_counting_by_hand
- np.searchsorted(x, thresholds) for
+ np.searchsorted(x, thresholds, "right") for

metrics/ood.py: a step, not a line
test_ood.py::test_a_rate_between_two_thresholds_is_interpolated
- false[i - 1] + share *
+ false[i - 1] + 1 *

metrics/ood.py: distances by products
test_ood.py::test_distances_are_those_of_a_loop
- np.linalg.norm(queries - bank[column], axis=1)
+ np.sqrt(abs((queries**2).sum(1) + (bank[column]**2).sum(1) - 2 * (queries * bank[column]).sum(1)))

metrics/ood.py: radii of one side
test_ood.py::test_radii_deviate_to_both_sides
- np.abs(np.mean
+ np.negative(np.mean

experiment.py: beta relative to no regulariser
test_experiment.py::test_beta_relative_to_nothing
- row["regulariser"] == 0.0
+ row["regulariser"] < 0.0

batches.py: a last batch of one image and copies of another
test_evaluation.py::test_a_last_batch_of_one_image_has_the_statistics_of_a_whole_one
- indices % np.int32(count)
+ np.where(mask, indices, np.int32(0))

settings.py: the gain of another data set
test_settings.py::test_the_published_recipe_in_every_row
- "mnist": 50_000.0
+ "mnist": 500_000.0

settings.py: a shorter run is never decayed
test_settings.py::test_a_shorter_run_shortens_annealing_and_decay
- max(1, round(share * e)) for e
+ e for e

settings.py: half compression drops, too
test_settings.py::test_the_published_recipe_in_every_row
- "loss.annealing": "published"}
+ "loss.annealing": "published_drop"}

sweep.py: rows that were judged under other samplers in one table
test_sweep.py::test_runs_are_judged_in_several_ways_and_told_apart
- (judgement(row), *trained, *distances(row))
+ (judgement(row), *trained)

sweep.py: a longer run taken for a shorter one
test_sweep.py::test_a_longer_run_is_no_shorter_one
- found["epoch"] > epochs
+ found["epoch"] < 0

logs.py: a checkpoint that is gone is the best
test_logs.py::test_the_best_step_is_of_validation_alone
- row["step"] in among and
+ row["step"] and

metrics/memorisation.py: rounding decides a tie
test_metrics.py::test_copies_are_nearest_to_what_they_copy_and_ties_count_half
- gap = np.subtract(*(np.sum((block - x) ** 2, axis=1) for x in nearest))
+ gap = from_train.min(axis=1) - from_test.min(axis=1)

compare.py: samples of the run's own sampler alone
test_compare.py::test_runs_side_by_side
- sampler = sampler or config
+ sampler = config
"""


class Bug(NamedTuple):
    """Four lines of BUGS."""

    file: str  # in hsjax/
    name: str
    test: str  # in tests/
    old: str
    new: str


def parsed(text: str) -> list[Bug]:
    """The bugs of a text such as BUGS; an exit with 2 if one of their texts isn't there once."""
    bugs, moved = [], []
    for block in text.strip().split("\n\n"):
        head, test, old, new = block.split("\n")
        bug = Bug(*head.split(": ", 1), test, old.removeprefix("- "), new.removeprefix("+ "))
        bugs.append(bug)
        if (count := (ROOT / "hsjax" / bug.file).read_text().count(bug.old)) != 1:
            moved.append(f"{head}: there {count} times, not once: {bug.old}")
    if moved:
        print(*moved, "adapt these to the code as it is now", sep="\n", file=sys.stderr)
        sys.exit(2)
    return bugs


def first_failure(copy: Path, tests: Iterable[str]) -> str | None:
    """Which of the tests in the copy failed first, or None; an exit with 2 if they can't run."""
    environment = os.environ | {
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",  # a changed file of the same size and second is no other
        "JAX_COMPILATION_CACHE_DIR": str(copy / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", *(f"tests/{test}" for test in tests)]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    failure = r"^(?:FAILED|ERROR) tests/test_(\w+).py::test_(\S+)"
    found = re.search(failure, done.stdout, re.MULTILINE)
    if done.returncode != 1 or not found:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        sys.exit(2)
    return f"{found[1]}: {found[2]}"


def main(words: list[str]) -> int:
    """Prints a line a bug; returns how many survive, at most 1."""
    bugs = parsed(BUGS)
    if words:
        bugs = [b for b in bugs if any(word in f"{b.file}: {b.name}" for word in words)]
    if not bugs:
        print(f"no bug's file or name holds {' or '.join(words)}", file=sys.stderr)
        return 2
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("hsjax", "configs", "tests", "benchmarks"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if test := first_failure(copy, {bug.test for bug in bugs}):
            print(f"without any bug, this test fails: {test}", file=sys.stderr)
            return 2
        for bug in bugs:
            path = copy / "hsjax" / bug.file
            sound = path.read_text()
            path.write_text(sound.replace(bug.old, bug.new))
            test = first_failure(copy, [bug.test])
            path.write_text(sound)
            survivors += test is None
            verdict = f"killed by {test}" if test else "SURVIVED"
            print(f"{bug.name:<37}{verdict}"[:80], flush=True)
    print(f"{len(bugs)} bugs, {survivors} survived")
    return min(survivors, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
