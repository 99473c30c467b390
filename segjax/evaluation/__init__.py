"""Evaluation: scores of a data set, counted in one pass, and what shows them: tables, curves,
pictures; and simple methods to compare with.

Here belongs what tells how good a prediction is. Not here: how it is made (`segjax.inference`), and
what is wrong with the data itself (`segjax.data.audit`).
"""

from segjax.evaluation import baselines as baselines
from segjax.evaluation import bootstrap as bootstrap
from segjax.evaluation import boundary as boundary
from segjax.evaluation import calibration as calibration
from segjax.evaluation import charts as charts
from segjax.evaluation import comparison as comparison
from segjax.evaluation import confusion as confusion
from segjax.evaluation import evaluator as evaluator
from segjax.evaluation import isbi as isbi
from segjax.evaluation import markup as markup
from segjax.evaluation import metrics as metrics
from segjax.evaluation import objects as objects
from segjax.evaluation import page as page
from segjax.evaluation import report as report
from segjax.evaluation import results as results
from segjax.evaluation import visualise as visualise
