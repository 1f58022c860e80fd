-- Send a command to one worker. It holds for a while, in case the notice is lost.
--
-- KEYS[1]  the queue
-- ARGV[1]  key of the worker's command     ARGV[2]  channel that the worker listens to     ARGV[3]  the command
-- ARGV[4]  ms for which it holds
redis.call('SET', ARGV[1], ARGV[3], 'PX', ARGV[4])
redis.call('PUBLISH', ARGV[2], '1')
