-- Statements about the aggregates as a training takes them. Named by day, holdout, source and measure, they read of the
-- aggregates what they are about and nothing else. Ten thousand statements would be as many steps: the days of a scenario
-- come in as one JSON array.

-- days_of_counts --
WITH RECURSIVE days (day) AS (
    SELECT min(day) FROM aggregate WHERE scenario_no = ?1
    UNION ALL
    SELECT (SELECT min(day) FROM aggregate WHERE scenario_no = ?1 AND aggregate.day > days.day) FROM days
    WHERE days.day IS NOT NULL
)
SELECT json_group_array(day) FROM days WHERE day IS NOT NULL;

-- totals_of_producers --
SELECT source, producer, measure, sum(aggregate.value)
FROM json_each(:days) AS days
CROSS JOIN json_each(:sources) AS sources
CROSS JOIN json_each(:measures) AS measures
CROSS JOIN aggregate
WHERE scenario_no = :scenario_no AND day = days.value AND holdout IN (0, 1) AND source = sources.value
    AND measure = measures.value
GROUP BY source, producer, measure;

-- best_supported --
-- total, not sum: absurd counts must not overflow. Exact up to 2^53 billionths, above that it only ranks.
SELECT names
FROM json_each(:days) AS days
CROSS JOIN json_each(:ranked_by) AS measures
CROSS JOIN aggregate
WHERE scenario_no = :scenario_no AND day = days.value AND holdout = :holdout AND source = :source
    AND measure = measures.value
GROUP BY names
HAVING sum(aggregate.value) <> 0
ORDER BY total(1.0 * aggregate.value * coalesce(json_extract(:weights, '$."' || producer || '"'), :whole)) DESC, names
LIMIT :most;

-- number_of_names --
SELECT count(*) FROM (
    SELECT 1
    FROM json_each(:days) AS days
    CROSS JOIN json_each(:ranked_by) AS measures
    CROSS JOIN aggregate
    WHERE scenario_no = :scenario_no AND day = days.value AND holdout = :holdout AND source = :source
        AND measure = measures.value
    GROUP BY names
    HAVING sum(aggregate.value) <> 0
);

-- counts_of_family --
SELECT
    measure,
    CASE WHEN names IN (SELECT value FROM json_each(:kept)) THEN names ELSE '[]' END AS kept_names,
    coalesce(json_extract(:weights, '$."' || producer || '"'), :whole) AS weight,
    sum(aggregate.value)
FROM json_each(:days) AS days
CROSS JOIN aggregate
WHERE scenario_no = :scenario_no AND day = days.value AND holdout = :holdout AND source = :source
    AND measure > :family || '.' AND measure < :family || '/'
GROUP BY measure, kept_names, weight
ORDER BY measure, kept_names;
