"""Do the classes sit together in the latent space? The k-NN accuracy of section 4.3."""

import numpy as np


def knn_accuracy(bank, bank_labels, queries, query_labels, k: int = 5) -> float:
    """Share of queries whose k nearest neighbours in the bank vote for the right class.

    Args:
      bank: [count, n], usually the latent means of the train split.
      bank_labels: integers [count].
      queries: [m, n], usually those of the test split.
      query_labels: integers [m].
      k: number of neighbours, at most count.

    Returns:
      A fraction in [0, 1].

    Raises:
      ValueError: k > count.
    """
    from sklearn.neighbors import KNeighborsClassifier  # a second to import

    classifier = KNeighborsClassifier(k, algorithm="brute").fit(np.asarray(bank), bank_labels)
    return float(classifier.score(np.asarray(queries), query_labels))
