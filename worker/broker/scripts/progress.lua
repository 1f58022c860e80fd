-- Write a job's progress, and notify who follows it.
--
-- KEYS[1]  the queue
-- ARGV[1]  key of the progress     ARGV[2]  channel     ARGV[3]  the progress     ARGV[4]  ms for which it is kept
redis.call('SET', ARGV[1], ARGV[3], 'PX', ARGV[4])
redis.call('PUBLISH', ARGV[2], '1')
